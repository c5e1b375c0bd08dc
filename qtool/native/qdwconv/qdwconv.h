// Quantized depthwise convolution over NHWC: every channel by itself.
//
//   sum[p, c] = start[c] + sum over t of a[p, t, c] * w[t, c]    exact, in int32 modulo 2^32
//   start and the way from a sum to a byte are those of qconv.h
//
//   p  output pixel of a line (n, y); t  tap (ky, kx); c  channel
//
// A multiplication of bytes that adds `group` neighbouring products at once (VPDPBUSD 4, VPMADDWD 2) sums over taps
// here: the input vectors of a group of taps are interleaved byte by byte, as unpacking does it. So taps are numbered
// in groups: slot s of group g, in the order of (ky, kx), the last group filled up with empty slots of weight 0. A
// kernel with `columns` has a group for each column of a 3x3 kernel instead, which neighbouring pixels then share; with
// groups of 2 its upper two taps, then the lowest taps of columns 0 and 1, then an empty slot and that of column 2.
//
// Unpacking works inside of 128-bit lanes. Channels are cut in blocks of lanes * vectors * 4; position i of 0..3, lane
// l and vector v holds channel (l * vectors + v) * 4 + i of its block, and a block is packed
//   weight [group][vector][lane][i][slot] (int8 or, with element_bytes 2, int16)
//   start, bias, multiplier [vector][lane][i]
// Channels past the last one have weights, start and multipliers of 0; they are read (see QT_SLACK), never written.
//
// This header is all that an instruction set file includes of qtool.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "qconv/qconv.h"

namespace qtool {

struct QdwconvBlock {
  int lanes, channels;  // channels to write, at most lanes * vectors * 4
  int64_t first;        // channel
  const void* weight;   // 64-byte aligned, as the arrays
  const int32_t* start;
  const float* bias;
  const float* multiplier;
};

struct QdwconvSlot {
  int ky, kx;  // -1, -1: empty
};

// All lines of one operator.
struct QdwconvShape {
  int64_t channels, in_width, out_width;
  int64_t pitch;                    // bytes from an output pixel to the next, and of the residual
  int64_t stride, pad, dilation;  // along the line
  int groups;
  bool by_columns;           // the groups are those of a 3x3 kernel's columns, dilation 1
  const QdwconvSlot* slots;  // [groups][kernel.group]
  const QdwconvBlock* blocks;
  int block_count;
  const uint8_t* outside;  // [in_width][channels], what taps outside of the picture see
  QconvFinish finish;
};

struct QdwconvLine {
  const QdwconvShape* shape;
  const uint8_t* const* rows;  // [kernel height] of the input; NULL outside of the picture
  const uint8_t** pointers;    // [groups][kernel.group], for the kernel's use
  const uint8_t* residual;     // as out, or NULL
  uint8_t* out;                // [out_width][pitch], of which the first `channels` are written
};

struct QdwconvKernel {
  int group, element_bytes, vectors, least_lanes, most_lanes;  // lanes are a power of two
  bool columns;
  void (*run)(const QdwconvLine& line);
};

// Where the input of one tap is, channel 0.
static inline const uint8_t* qdwconv_tap(const QdwconvLine& line, const uint8_t* row, int64_t column) {
  const QdwconvShape& s = *line.shape;
  return row != NULL && (uint64_t)column < (uint64_t)s.in_width ? row + column * s.channels : s.outside;
}

// Fills line.pointers for output pixel x; empty slots point to anything that can be read.
static inline void qdwconv_point(const QdwconvLine& line, int64_t x, int group) {
  const QdwconvShape& s = *line.shape;
  const int64_t left = x * s.stride - s.pad;
  for (int i = 0; i < s.groups * group; i++) {
    const QdwconvSlot slot = s.slots[i];
    line.pointers[i] = slot.ky < 0 ? s.outside : qdwconv_tap(line, line.rows[slot.ky], left + slot.kx * s.dilation);
  }
}

#define QT_KERNEL(isa, name, tile) extern const QdwconvKernel name;
#include "qdwconv/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
