// The kernels of the family in plain C++: each instruction set's file includes this text and the compiler makes vectors
// of its width out of the loops. No file but those may include it.
#include "core/functions.h"
#include "recurrent/recurrent.h"

namespace qtool {
namespace {

#define EACH_UNIT _Pragma("GCC ivdep") for (int64_t j = 0; j < n; ++j)

static inline float clipped(float x, float clip) {
  x = clip < x ? clip : x;  // these two let NaN pass
  return -clip > x ? -clip : x;
}

// The flags are template arguments: compilers make no vectors of a loop that asks for them.
template <bool coupled>
static inline void lstm_cell(const RecurrentRow& row) {
  const int64_t n = row.count;
  const float *a = row.product, *b = row.projected, *p = row.peephole;
  const float clip = row.clip;
  float *h = row.hidden, *c = row.memory;
  EACH_UNIT {
    const float i = sigmoid_of(clipped(a[j] + b[j] + p[j] * c[j], clip));
    const float own = sigmoid_of(clipped(a[2 * n + j] + b[2 * n + j] + p[2 * n + j] * c[j], clip));
    const float f = coupled ? 1.0f - i : own;
    const float next = f * c[j] + i * tanh_of(clipped(a[3 * n + j] + b[3 * n + j], clip));
    const float o = sigmoid_of(clipped(a[n + j] + b[n + j] + p[n + j] * next, clip));
    c[j] = next;
    h[j] = o * tanh_of(clipped(next, clip));
  }
}

void lstm(const RecurrentRow& row) { row.flag ? lstm_cell<true>(row) : lstm_cell<false>(row); }

void gru(const RecurrentRow& row) {
  const int64_t n = row.count;
  const float *a = row.product, *b = row.projected;
  const float clip = row.clip;
  float* h = row.hidden;
  EACH_UNIT {
    const float z = sigmoid_of(clipped(a[j] + b[j], clip)), r = sigmoid_of(clipped(a[n + j] + b[n + j], clip));
    const float next = tanh_of(clipped(b[2 * n + j] + r * a[2 * n + j], clip));
    h[j] = (h[j] - next) * z + next;
  }
}

void reset(const RecurrentRow& row) {
  const int64_t n = row.count;
  const float *a = row.product, *b = row.projected, *h = row.hidden;
  const float clip = row.clip;
  float *update = row.update, *reset_hidden = row.reset_hidden;
  EACH_UNIT {
    update[j] = sigmoid_of(clipped(a[j] + b[j], clip));
    reset_hidden[j] = sigmoid_of(clipped(a[n + j] + b[n + j], clip)) * h[j];
  }
}

void finish(const RecurrentRow& row) {
  const int64_t n = row.count;
  const float *b = row.projected, *inner = row.inner, *z = row.update;
  const float clip = row.clip;
  float* h = row.hidden;
  EACH_UNIT {
    const float next = tanh_of(clipped(b[2 * n + j] + inner[j], clip));
    h[j] = (h[j] - next) * z[j] + next;
  }
}

template <bool relu>
static inline void rnn_cell(const RecurrentRow& row) {
  const int64_t n = row.count;
  const float *a = row.product, *b = row.projected;
  const float clip = row.clip;
  float* h = row.hidden;
  EACH_UNIT {
    const float x = clipped(a[j] + b[j], clip);
    h[j] = relu ? (0.0f > x ? 0.0f : x) : tanh_of(x);
  }
}

void rnn(const RecurrentRow& row) { row.flag ? rnn_cell<true>(row) : rnn_cell<false>(row); }

constexpr RecurrentKernels kKernels = {lstm, gru, reset, finish, rnn};

}  // namespace
}  // namespace qtool
