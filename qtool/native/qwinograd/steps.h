// The products with the matrices of qwinograd.h in sums and shifts, for vectors of uint16 (inputs and weights) or
// uint32 (outputs), which are modulo 2^16 and 2^32: signed numbers come out right.
#pragma once

#define INLINE static inline __attribute__((always_inline))

namespace qtool {
namespace {

template <int kSize>
struct Winograd;

template <>
struct Winograd<2> {
  static constexpr int kShift = 2;

  template <typename T>
  INLINE void input(const T (&d)[4], T (&t)[4]) {
    t[0] = d[0] - d[2];
    t[1] = d[1] + d[2];
    t[2] = d[2] - d[1];
    t[3] = d[1] - d[3];
  }

  template <typename T>
  INLINE void weight(const T (&g)[3], T (&t)[4]) {
    const T ends = g[0] + g[2];
    t[0] = g[0] + g[0];
    t[1] = ends + g[1];
    t[2] = ends - g[1];
    t[3] = g[2] + g[2];
  }

  template <typename T>
  INLINE void output(const T (&m)[4], T (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }

  template <typename T>
  INLINE T without_odd(T y) {
    return y;
  }
};

template <>
struct Winograd<4> {
  static constexpr int kShift = 6;

  template <typename T>
  INLINE void input(const T (&d)[6], T (&t)[6]) {
    const T even = d[4] - (d[2] << 2), odd = d[3] - (d[1] << 2);
    const T near = d[4] - d[2], twice = (d[3] - d[1]) << 1;
    t[0] = (d[0] << 2) + (even - d[2]);
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = near + twice;
    t[4] = near - twice;
    t[5] = d[5] - d[3] - (twice + twice);
  }

  template <typename T>
  INLINE void weight(const T (&g)[3], T (&t)[6]) {
    T six = T{} + 6;
    __asm__("" : "+x"(six));  // or gcc makes two shifts and a sum of a product
    const T ends = g[0] + g[2], far = g[0] + (g[2] << 2), twice = g[1] + g[1];
    t[0] = g[0] * six;
    t[1] = ends + g[1];
    t[2] = ends - g[1];
    t[3] = far + twice;
    t[4] = far - twice;
    t[5] = g[2] * six;
  }

  template <typename T>
  INLINE void output(const T (&m)[6], T (&y)[4]) {
    const T sum = m[1] + m[2], difference = m[1] - m[2];
    const T far_sum = m[3] + m[4], far_difference = m[3] - m[4];
    const T twice = far_difference + far_difference;
    y[0] = m[0] + far_sum - (sum << 2);
    y[1] = twice - (difference << 2);
    y[2] = (far_sum - sum) << 2;
    y[3] = (twice + m[5] - difference) << 2;
  }

  template <typename T>
  INLINE T without_odd(T y) {
    return y * 954437177u;  // 9^-1
  }
};

// Along rows or columns of which a tile has one or two outputs of four. The points are a part of those above, so that the
// weights' transform is, too.
template <int kSize, bool kFew>
struct Steps : Winograd<kSize> {};

template <>
struct Steps<4, true> {
  template <typename T>
  INLINE void input(const T (&d)[6], T (&t)[6]) {
    t[0] = d[0] - d[2];
    t[1] = d[1] + d[2];
    t[2] = d[2] - d[1];
    t[3] = t[4] = T{};  // not taken
    t[5] = d[3] - d[1];
  }

  template <typename T>
  INLINE void output(const T (&m)[6], T (&y)[4]) {
    const T sum = m[1] + m[2], difference = m[1] - m[2];
    y[0] = (m[0] + sum + (sum << 1)) << 2;
    y[1] = (m[5] + difference + (difference << 1)) << 2;
    y[2] = y[3] = T{};
  }
};

}  // namespace
}  // namespace qtool
