#include "ceilings/ceilings.h"

namespace qtool {
namespace {

// Each round reads its operands anew: or the compiler would take one product times the rounds.
#define AGAIN(x) __asm__ volatile("" : "+r"(x) : : "memory")

int64_t int8(const uint8_t* x, int64_t, int64_t rounds) {
  int64_t total = 0;
  for (int64_t round = 0; round < rounds; round++) {
    const int8_t* b = reinterpret_cast<const int8_t*>(x + 64);
    int32_t sum = 0;
    for (int i = 0; i < 64; i++) sum += x[i] * b[i];
    total += sum;
    AGAIN(x);
  }
  return total;
}

int64_t float32(const uint8_t* x, int64_t, int64_t rounds) {
  float sums[16] = {};
  for (int64_t round = 0; round < rounds; round++) {
    const float *a = reinterpret_cast<const float*>(x), *b = a + 16;
    for (int i = 0; i < 16; i++) sums[i] += a[i] * b[i];
    AGAIN(x);
  }
  float total = 0;
  for (int i = 0; i < 16; i++) total += sums[i];
  return static_cast<int64_t>(total);
}

int64_t read(const uint8_t* x, int64_t bytes, int64_t rounds) {
  int64_t total = 0;
  for (int64_t round = 0; round < rounds; round++) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(x);
    uint32_t sum = 0;
    for (int64_t i = 0; i < bytes / 4; i++) sum += words[i];
    total += static_cast<int32_t>(sum);
    AGAIN(x);
  }
  return total;
}

}  // namespace

const CeilingKernels ceilings_scalar = {int8, float32, read};

}  // namespace qtool
