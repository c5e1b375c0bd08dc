// The kernels of the family in the compiler's own vectors of 64 bytes: each instruction set's file includes this text and
// gets them in its registers. No file but those may include it.
#include <math.h>

#include "pool/pool.h"

namespace qtool {
namespace {

constexpr int kLanes = 64;

// 64 bytes of elements, in as many registers as the instruction set needs for them.
typedef uint8_t Bytes __attribute__((vector_size(64), aligned(1), may_alias));
typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64), may_alias));

// One register of elements: gcc 12 compares longer vectors in pieces, but chooses between them number by number.
#if defined(__AVX512BW__)
constexpr int kRegister = 64;
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

// A vector type as a template argument would lose its alignment: these name it.
template <class T>
struct VectorOf;
template <>
struct VectorOf<uint8_t> {
  typedef uint8_t Type __attribute__((vector_size(kRegister), aligned(1), may_alias));
};
template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(kRegister), aligned(4), may_alias));
};

// Calls block(c) for all blocks of channels, the last of which may reach back into the one before, or where there is
// not one whole block, single(c) for each channel.
template <int kCount, class Block, class Single>
static inline void walk(int64_t channels, const Block& block, const Single& single) {
  if (channels < kCount) {
    for (int64_t c = 0; c < channels; c++) single(c);
    return;
  }
  for (int64_t c = 0; c + kCount <= channels; c += kCount) block(c);
  if (channels % kCount != 0) block(channels - kCount);
}

template <class T>
void max_rows(const T* const* x, int64_t taps, int64_t channels, T* out) {
  typedef typename VectorOf<T>::Type Vector;
  const auto block = [&](int64_t c) {
    Vector most = *reinterpret_cast<const Vector*>(x[0] + c);
    for (int64_t t = 1; t < taps; t++) {
      const Vector row = *reinterpret_cast<const Vector*>(x[t] + c);
      most = row > most ? row : most;
    }
    *reinterpret_cast<Vector*>(out + c) = most;
  };
  const auto single = [&](int64_t c) {
    T most = x[0][c];
    for (int64_t t = 1; t < taps; t++) most = x[t][c] > most ? x[t][c] : most;
    out[c] = most;
  };
  walk<sizeof(Vector) / sizeof(T)>(channels, block, single);
}

static inline uint8_t quantized(int32_t sum, const QuantizedAverage& a) {
  const float s = static_cast<float>(sum - a.offset), zero = static_cast<float>(a.zero);
  const float r = a.fused != 0 ? fmaf(s, a.multiplier, zero) : nearbyintf(s * a.multiplier) + zero;
  const float low = r > 0.0f ? r : 0.0f, high = low < 255.0f ? low : 255.0f;
  return static_cast<uint8_t>(static_cast<int32_t>(nearbyintf(high)));
}

constexpr int64_t kHalvesLast = 256;  // bytes whose sum fits 16 bits

// Sums of 64 channels; sums[k] is of the channels 4 i + k. Bytes are taken apart by masks and shifts: the compiler knows
// no better conversion of vectors.
void sum_lanes(const uint8_t* const* x, int64_t taps, int64_t c, Words (&sums)[4]) {
  for (int k = 0; k < 4; k++) sums[k] = Words{};
  for (int64_t first = 0; first < taps; first += kHalvesLast) {
    const int64_t last = first + kHalvesLast < taps ? first + kHalvesLast : taps;
    Halves even = {}, odd = {};
    for (int64_t t = first; t < last; t++) {
      const Halves row = (Halves)*reinterpret_cast<const Bytes*>(x[t] + c);
      even += row & 0xff;
      odd += row >> 8;
    }
    sums[0] += (Words)even & 0xffff;
    sums[1] += (Words)odd & 0xffff;
    sums[2] += (Words)even >> 16;
    sums[3] += (Words)odd >> 16;
  }
}

void quantize_lanes(Words* sums, const QuantizedAverage& a) {
  alignas(64) uint32_t lanes[kLanes / 4];
  *reinterpret_cast<Words*>(lanes) = *sums;
  for (uint32_t& lane : lanes) lane = quantized(static_cast<int32_t>(lane), a);  // becomes vectors
  *sums = *reinterpret_cast<const Words*>(lanes);
}

void average_rows(const uint8_t* const* x, int64_t taps, int64_t channels, const QuantizedAverage& a, uint8_t* out) {
  const auto block = [&](int64_t c) {
    Words sums[4], bytes = {};
    sum_lanes(x, taps, c, sums);
    for (int k = 0; k < 4; k++) {
      quantize_lanes(&sums[k], a);
      bytes |= sums[k] << 8 * k;
    }
    *reinterpret_cast<Bytes*>(out + c) = (Bytes)bytes;
  };
  const auto single = [&](int64_t c) {
    int32_t sum = 0;
    for (int64_t t = 0; t < taps; t++) sum += x[t][c];
    out[c] = quantized(sum, a);
  };
  walk<kLanes>(channels, block, single);
}

void average_floats(const float* const* x, int64_t taps, int64_t channels, float divisor, float* out) {
  const auto block = [&](int64_t c) {
    Floats sum = {};
    for (int64_t t = 0; t < taps; t++) sum += *reinterpret_cast<const Floats*>(x[t] + c);
    *reinterpret_cast<Floats*>(out + c) = sum / divisor;
  };
  const auto single = [&](int64_t c) {
    float sum = 0.0f;
    for (int64_t t = 0; t < taps; t++) sum += x[t][c];
    out[c] = sum / divisor;
  };
  walk<kLanes / 4>(channels, block, single);
}

// Channels c .. c + Lanes - 1.
template <int Lanes>
static inline void add_max_lanes(const float* const* x, float* const* dx, int64_t taps, int64_t c, const float* dy) {
  float most[Lanes], left[Lanes];
  for (int i = 0; i < Lanes; i++) {
    most[i] = x[0][c + i];
    left[i] = dy[c + i];
  }
  for (int64_t t = 1; t < taps; t++) {
    for (int i = 0; i < Lanes; i++) most[i] = x[t][c + i] > most[i] ? x[t][c + i] : most[i];
  }
  for (int64_t t = 0; t < taps; t++) {
    for (int i = 0; i < Lanes; i++) {
      const bool found = x[t][c + i] == most[i];
      dx[t][c + i] += found ? left[i] : 0.0f;
      left[i] = found ? 0.0f : left[i];
    }
  }
}

void add_max_grad(const float* const* x, float* const* dx, int64_t taps, int64_t channels, const float* dy) {
  int64_t c = 0;
  for (; c + 16 <= channels; c += 16) add_max_lanes<16>(x, dx, taps, c, dy);
  for (; c < channels; c++) add_max_lanes<1>(x, dx, taps, c, dy);
}

constexpr PoolKernels kKernels = {max_rows<uint8_t>, max_rows<float>, average_rows, average_floats, add_max_grad};

}  // namespace
}  // namespace qtool
