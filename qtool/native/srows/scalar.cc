#include <cmath>

#include "srows/srows.h"

namespace qtool {
namespace {

void softmax(const float* x, float* y, int64_t n) {
  float most = -INFINITY;
  for (int64_t i = 0; i < n; ++i) most = x[i] > most ? x[i] : most;
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    y[i] = std::exp(x[i] - most);
    sum += y[i];
  }
  const float inverse = static_cast<float>(1 / sum);
  for (int64_t i = 0; i < n; ++i) y[i] *= inverse;
}

void layer_norm(const float* x, float* y, int64_t n, float eps, const float* scale, const float* shift) {
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  const double mean = sum / n;
  for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const double inverse = 1 / std::sqrt(squares / n + eps);
  for (int64_t i = 0; i < n; ++i) {
    y[i] = static_cast<float>((x[i] - mean) * inverse) * scale[i] + shift[i];
  }
}

}  // namespace

const SrowsKernels srows_scalar = {softmax, layer_norm};

}  // namespace qtool
