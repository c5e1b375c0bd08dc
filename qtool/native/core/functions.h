// Functions of one float32 without branches, so that compilers make vectors of the loops that call them. Products and
// sums are fused where it says fused and nowhere else: every instruction set gives the same bits. NaN gives NaN.
//
// Everything here is static and needs no other header: files of an instruction set may include it.
#pragma once

#include <stdint.h>

namespace qtool {

static inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

static inline float bits_to_float(int32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

static inline int32_t float_to_bits(float value) {
  int32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

static inline float power_of_two(int32_t n) { return bits_to_float((int32_t)((uint32_t)(n + 127) << 23)); }

// x = n ln 2 + r with |r| <= ln 2 / 2, and exp(r) - 1 (expf of Cephes, S. Moshier).
struct Exponent {
  int32_t n;
  float rest;
};

static inline Exponent exponent_of(float x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the nearest integer
  const float sum = fused(x, 1.44269504f, magic), whole = sum - magic;
  float r = fused(whole, -0.693359375f, x);
  r = fused(whole, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = fused(p, r, 1.3981999507e-3f);
  p = fused(p, r, 8.3334519073e-3f);
  p = fused(p, r, 4.1665795894e-2f);
  p = fused(p, r, 1.6666665459e-1f);
  p = fused(p, r, 5.0000001201e-1f);
  return {float_to_bits(sum) - float_to_bits(magic), fused(p, r * r, r)};
}

// Within 2 units in the last place; 2^n is multiplied in two halves, so that subnormal results are rounded once.
static inline float exp_of(float x) {
  x = -104.0f > x ? -104.0f : x;  // below, exp rounds to 0; in this order NaN passes
  x = 89.0f < x ? 89.0f : x;      // above, it is infinite
  const Exponent e = exponent_of(x);
  const int32_t half = e.n >> 1;
  return (e.rest + 1.0f) * power_of_two(half) * power_of_two(e.n - half);
}

// exp(x) - 1 for x <= 80, within 3 units in the last place.
static inline float expm1_of(float x) {
  x = -30.0f > x ? -30.0f : x;
  const Exponent e = exponent_of(x);
  const float power = power_of_two(e.n);
  return fused(power, e.rest, power - 1.0f);
}

// Within 3 units in the last place where the result is normal.
static inline float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(-x)); }

// Within 4 units in the last place: (e - 1) / (e + 1) of e = exp(2 |x|).
static inline float tanh_of(float x) {
  const float twice = 2.0f * __builtin_fabsf(x);
  const float e = expm1_of(20.0f < twice ? 20.0f : twice);  // tanh(10) is 1
  return __builtin_copysignf(e / (e + 2.0f), x);
}

// The normal distribution's mass above t >= 0, within 4 units in the last place where it is normal: exp(-t^2 / 2) times
// a polynomial in 1 / (1 + 0.35 t), fitted to exp(t^2 / 2) erfc(t / sqrt(2)) / 2 with a largest relative error of 3e-8.
// What rounding t^2 takes away goes back in as a factor.
static inline float normal_tail(float t) {
  t = 15.0f < t ? 15.0f : t;  // from 14.2 on it rounds to 0
  const float square = t * t, lost = fused(t, t, -square), u = 1.0f / fused(0.35f, t, 1.0f);
  float p = -0.02916317619383335f;
  p = fused(p, u, 0.14405740797519684f);
  p = fused(p, u, -0.25589537620544434f);
  p = fused(p, u, 0.15938608348369598f);
  p = fused(p, u, -0.023259520530700684f);
  p = fused(p, u, 0.1055731326341629f);
  p = fused(p, u, 0.1198158860206604f);
  p = fused(p, u, 0.13986428081989288f);
  p = fused(p, u, 0.13962125778198242f) * u;
  const float power = exp_of(-0.5f * square);
  return p * fused(power, -0.5f * lost, power);
}

// x Phi(x), within 8 units in the last place where the result is normal.
static inline float gelu_of(float x) {
  const float size = __builtin_fabsf(x), tail = normal_tail(size);
  const float above = x - (15.0f < size ? 15.0f : size) * tail;  // infinity times 0 is no number
  return x > 0.0f ? above : x * tail;
}

// x (1 + tanh(s)) / 2 = x / (1 + exp(-2 s)), s = sqrt(2 / pi) (x + 0.044715 x^3); 4 + 4 |s| units for x < 0.
static inline float gelu_tanh_of(float x) {
  const float s = 0.79788456080286536f * fused(0.044715f * x * x, x, x);
  return x / (1.0f + exp_of(-2.0f * s));
}

}  // namespace qtool
