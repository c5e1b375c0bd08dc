// The cells of LSTM, GRU and RNN layers over float32; the products are operators of the families sconv (float) and
// qlinear_dynamic (int8).
//
//   a[g, j] = product[g, j] + projected[g, j]     g  gate in ONNX's order, j  unit 0..count-1
//   s(x) = sigmoid(clip(x)), t(x) = tanh(clip(x)), clip to -clip..clip
//   c, h  memory and hidden state before; c', h' after
//
//   LSTM (input, output, forget, cell), p the peepholes of the first three:
//     i = s(a[0] + p[0] c), f = s(a[2] + p[2] c) or 1 - i (`flag`), c' = f c + i t(a[3]), o = s(a[1] + p[1] c'), h' = o t(c')
//   GRU (update, reset, hidden): z = s(a[0]), r = s(a[1]), n = t(projected[2] + inner), h' = (h - n) z + n
//     gru    inner = r product[2]
//     reset  gives z and r h, with which `inner` is computed elsewhere; finish does the rest
//   RNN: h' = t(a[0]), or max(0, clip(a[0])) (`flag`)
//
// Functions are those of core/functions.h: every instruction set gives the same bits for the same products.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

// One sample at one step.
struct RecurrentRow {
  const float* product;    // [gates][count], of the hidden state
  const float* projected;  // [gates][count], of the input
  const float* peephole;   // LSTM: [3][count]
  const float* inner;      // finish: [count]
  float* update;           // reset writes it, finish reads it: [count]
  float* reset_hidden;     // reset writes it: [count]
  float* hidden;           // [count], h and then h'
  float* memory;           // LSTM: [count], c and then c'
  int64_t count;
  float clip;
  bool flag;
};

struct RecurrentKernels {
  void (*lstm)(const RecurrentRow& row);
  void (*gru)(const RecurrentRow& row);
  void (*reset)(const RecurrentRow& row);
  void (*finish)(const RecurrentRow& row);
  void (*rnn)(const RecurrentRow& row);
};

#define QT_KERNEL(isa, name, tile) extern const RecurrentKernels name;
#include "recurrent/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
