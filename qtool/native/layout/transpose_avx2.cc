#include <immintrin.h>

#include "layout/transpose_avx2.h"

namespace qtool {
namespace {

template <class T>
void transpose_any(const T* x, int64_t x_stride, T* y, int64_t y_stride, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < cols; c++) y[c * y_stride + r] = x[r * x_stride + c];
  }
}

// One round of the 16x16 byte transposition: pairs of rows half the block apart are interleaved. Four rounds transpose.
inline void interleave16(const __m128i* in, __m128i* out) {
  for (int i = 0; i < 8; i++) {
    out[2 * i] = _mm_unpacklo_epi8(in[i], in[i + 8]);
    out[2 * i + 1] = _mm_unpackhi_epi8(in[i], in[i + 8]);
  }
}

// `rows` (16 or 8) x 16 bytes.
template <int kRows>
inline void block8(const uint8_t* x, int64_t x_stride, uint8_t* y, int64_t y_stride) {
  __m128i a[16], b[16];
  for (int r = 0; r < 16; r++) {
    a[r] = r < kRows ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + r * x_stride)) : _mm_setzero_si128();
  }
  interleave16(a, b);
  interleave16(b, a);
  interleave16(a, b);
  interleave16(b, a);
  for (int c = 0; c < 16; c++) {
    __m128i* target = reinterpret_cast<__m128i*>(y + c * y_stride);
    if (kRows == 16) {
      _mm_storeu_si128(target, a[c]);
    } else {
      _mm_storel_epi64(target, a[c]);
    }
  }
}

// Three planes to pixels of three bytes: 16 pixels make 48 bytes, each of which picks from one plane.
void planes3(const uint8_t* x, int64_t x_stride, uint8_t* y, int64_t cols) {
  alignas(16) int8_t picks[3][3][16];  // [16 bytes of the target][plane]
  for (int i = 0; i < 48; i++) {
    for (int plane = 0; plane < 3; plane++) picks[i / 16][plane][i % 16] = plane == i % 3 ? i / 3 : -128;
  }
  int64_t c = 0;
  for (; c + 16 <= cols; c += 16) {
    const __m128i p0 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + c));
    const __m128i p1 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + x_stride + c));
    const __m128i p2 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 2 * x_stride + c));
    for (int k = 0; k < 3; k++) {
      const __m128i* pick = reinterpret_cast<const __m128i*>(picks[k]);
      const __m128i from01 = _mm_or_si128(_mm_shuffle_epi8(p0, pick[0]), _mm_shuffle_epi8(p1, pick[1]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 3 * c) + k, _mm_or_si128(from01, _mm_shuffle_epi8(p2, pick[2])));
    }
  }
  transpose_any(x + c, x_stride, y + 3 * c, 3, 3, cols - c);
}

// 8 x 8 elements of 32 bits.
inline void block32(const uint32_t* x, int64_t x_stride, uint32_t* y, int64_t y_stride) {
  __m256 a[8], b[8];
  for (int r = 0; r < 4; r++) {  // rows r and r + 4 side by side: the halves of the block meet already here
    const float* low = reinterpret_cast<const float*>(x + r * x_stride);
    const float* high = reinterpret_cast<const float*>(x + (r + 4) * x_stride);
    a[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
    a[r + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low + 4)), _mm_loadu_ps(high + 4), 1);
  }
  for (int h = 0; h < 8; h += 4) {
    b[h + 0] = _mm256_unpacklo_ps(a[h + 0], a[h + 1]);
    b[h + 1] = _mm256_unpackhi_ps(a[h + 0], a[h + 1]);
    b[h + 2] = _mm256_unpacklo_ps(a[h + 2], a[h + 3]);
    b[h + 3] = _mm256_unpackhi_ps(a[h + 2], a[h + 3]);
  }
  for (int h = 0; h < 8; h += 4) {
    float* target = reinterpret_cast<float*>(y + h * y_stride);
    _mm256_storeu_ps(target, _mm256_shuffle_ps(b[h], b[h + 2], 0x44));
    _mm256_storeu_ps(target + y_stride, _mm256_shuffle_ps(b[h], b[h + 2], 0xee));
    _mm256_storeu_ps(target + 2 * y_stride, _mm256_shuffle_ps(b[h + 1], b[h + 3], 0x44));
    _mm256_storeu_ps(target + 3 * y_stride, _mm256_shuffle_ps(b[h + 1], b[h + 3], 0xee));
  }
}

}  // namespace

void transpose8_avx2(const uint8_t* x, int64_t x_stride, uint8_t* y, int64_t y_stride, int64_t rows, int64_t cols) {
  if (rows == 3 && y_stride == 3) return planes3(x, x_stride, y, cols);
  const int64_t whole_cols = cols / 16 * 16;
  int64_t r = 0;
  for (; r + 8 <= rows; r += rows - r >= 16 ? 16 : 8) {
    for (int64_t c = 0; c < whole_cols; c += 16) {
      const uint8_t* source = x + r * x_stride + c;
      uint8_t* target = y + c * y_stride + r;
      if (rows - r >= 16) {
        block8<16>(source, x_stride, target, y_stride);
      } else {
        block8<8>(source, x_stride, target, y_stride);
      }
    }
  }
  transpose_any(x + whole_cols, x_stride, y + whole_cols * y_stride, y_stride, r, cols - whole_cols);
  transpose_any(x + r * x_stride, x_stride, y + r, y_stride, rows - r, cols);
}

void transpose32_avx2(const uint32_t* x, int64_t x_stride, uint32_t* y, int64_t y_stride, int64_t rows, int64_t cols) {
  const int64_t whole_rows = rows / 8 * 8, whole_cols = cols / 8 * 8;
  for (int64_t r = 0; r < whole_rows; r += 8) {
    for (int64_t c = 0; c < whole_cols; c += 8) block32(x + r * x_stride + c, x_stride, y + c * y_stride + r, y_stride);
  }
  transpose_any(x + whole_cols, x_stride, y + whole_cols * y_stride, y_stride, whole_rows, cols - whole_cols);
  transpose_any(x + whole_rows * x_stride, x_stride, y + whole_rows, y_stride, rows - whole_rows, cols);
}

}  // namespace qtool
