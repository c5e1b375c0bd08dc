// The specification of the kernels: products with the matrices as they stand in qwinograd.h.
#include "qconv/finish.h"
#include "qwinograd/qwinograd.h"

namespace qtool {
namespace {

constexpr int kColumns = 16;
constexpr int kPair = 2 * kColumns;  // weights of two input channels

template <int kSize>
struct Matrices;

template <>
struct Matrices<2> {
  static constexpr int kShift = 2;
  static constexpr uint32_t kInverse = 1;  // of the odd part of s, modulo 2^32
  static constexpr int kInput[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
  static constexpr int kWeight[4][3] = {{2, 0, 0}, {1, 1, 1}, {1, -1, 1}, {0, 0, 2}};
  static constexpr int kOutput[2][4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};
};

template <>
struct Matrices<4> {
  static constexpr int kShift = 6;
  static constexpr uint32_t kInverse = 954437177;  // * 9 = 2 * 2^32 + 1
  static constexpr int kInput[6][6] = {{4, 0, -5, 0, 1, 0},  {0, -4, -4, 1, 1, 0}, {0, 4, -4, -1, 1, 0},
                                       {0, -2, -1, 2, 1, 0}, {0, 2, -1, -2, 1, 0}, {0, 4, 0, -5, 0, 1}};
  static constexpr int kWeight[6][3] = {{6, 0, 0}, {1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {1, -2, 4}, {0, 0, 6}};
  static constexpr int kOutput[4][6] = {
      {1, -4, -4, 1, 1, 0}, {0, -4, 4, 2, -2, 0}, {0, -4, -4, 4, 4, 0}, {0, -4, 4, 8, -8, 4}};
  static constexpr int kFewInput[6][6] = {{1, 0, -1, 0, 0, 0}, {0, 1, 1, 0, 0, 0}, {0, -1, 1, 0, 0, 0},
                                          {},                  {},                 {0, -1, 0, 1, 0, 0}};
  static constexpr int kFewOutput[4][6] = {{4, 12, 12, 0, 0, 0}, {0, 12, -12, 0, 0, 4}, {}, {}};
};

// Of tiles with so many outputs in a column or row.
template <int kSize>
const int (&input_matrix(int outputs))[kSize + 2][kSize + 2] {
  if constexpr (kSize == 4) {
    if (qwinograd_few(kSize, outputs)) return Matrices<4>::kFewInput;
  }
  return Matrices<kSize>::kInput;
}

template <int kSize>
const int (&output_matrix(int outputs))[kSize][kSize + 2] {
  if constexpr (kSize == 4) {
    if (qwinograd_few(kSize, outputs)) return Matrices<4>::kFewOutput;
  }
  return Matrices<kSize>::kOutput;
}

template <int kSize>
void transform(const QwinogradInput& input) {
  constexpr int n = kSize + 2;
  for (int64_t t = 0; t < input.tiles; t++) {
    const auto& rows = input_matrix<kSize>(input.tile[t].rows);
    const auto& columns = input_matrix<kSize>(input.tile[t].columns);
    for (int64_t i = 0; i < input.channels; i++) {
      for (int p = 0; p < n * n; p++) {
        int v = 0;
        for (int q = 0; q < n * n; q++) {
          v += rows[p / n][q / n] * columns[p % n][q % n] * (input.pixels[t * n * n + q][i] - input.x_zero);
        }
        input.v[p * input.pitch + t * input.channels + i] = static_cast<int16_t>(v);
      }
    }
  }
}

// Where the weight for i of [16][i % 2] lies in a pair.
int64_t packed_at(int64_t i) { return i % (kPair / 2) * 2 + i / (kPair / 2); }

// U of the positions in row y of the grid.
template <int kSize>
void transform_weight(const QwinogradJob& job, int64_t first, int64_t pairs, int y) {
  const auto& matrix = Matrices<kSize>::kWeight;
  for (int x = 0; x < kSize + 2; x++) {
    for (int64_t i = 0; i < pairs * kPair; i++) {
      const int8_t* weight = job.panel->weight + (first + i / kPair) * 9 * kPair + packed_at(i % kPair);
      int u = 0;
      for (int tap = 0; tap < 9; tap++) u += matrix[y][tap / 3] * matrix[x][tap % 3] * weight[tap * kPair];
      job.u[x * job.u_pitch + i] = static_cast<int16_t>(u);
    }
  }
}

// M of the positions in row y of the grid.
template <int kSize>
void multiply(const QwinogradJob& job, int64_t first, int64_t pairs, int y) {
  constexpr int n = kSize + 2;
  for (int x = 0; x < n; x++) {
    const QwinogradRange range = qwinograd_range(job.counts, y, x);
    for (int64_t t = range.begin; t < range.end; t++) {
      const int16_t* v = job.v + (y * n + x) * job.v_pitch + t * job.channels + first * 2;
      for (int c = 0; c < kColumns; c++) {
        int32_t& m = job.m[(t * n * n + y * n + x) * kColumns + c];
        uint32_t sum = first == 0 ? 0 : static_cast<uint32_t>(m);
        for (int64_t i = 0; i < pairs * 2; i++) {
          sum += static_cast<uint32_t>(v[i] * job.u[x * job.u_pitch + i / 2 * kPair + c * 2 + i % 2]);
        }
        m = static_cast<int32_t>(sum);
      }
    }
  }
}

template <int kSize>
int32_t sum_at(const QwinogradJob& job, int64_t tile, int y, int x, int c) {
  using Matrix = Matrices<kSize>;
  constexpr int n = kSize + 2;
  const auto& rows = output_matrix<kSize>(job.tiles[tile].rows);
  const auto& columns = output_matrix<kSize>(job.tiles[tile].columns);
  uint32_t sum = 0;
  for (int p = 0; p < n * n; p++) {
    const uint32_t m = static_cast<uint32_t>(job.m[(tile * n * n + p) * kColumns + c]);
    sum += static_cast<uint32_t>(rows[y][p / n] * columns[x][p % n]) * m;
  }
  const int32_t exact = static_cast<int32_t>(sum * Matrix::kInverse) >> Matrix::kShift;
  return static_cast<int32_t>(static_cast<uint32_t>(exact) + static_cast<uint32_t>(job.panel->start[c]));
}

template <int kSize>
void run(const QwinogradJob& job) {
  for (int64_t first = 0; first < job.pairs; first += job.block) {
    const int64_t pairs = job.pairs - first < job.block ? job.pairs - first : job.block;
    for (int y = 0; y < kSize + 2; y++) {
      transform_weight<kSize>(job, first, pairs, y);
      multiply<kSize>(job, first, pairs, y);
    }
  }
  const QwinogradPanel& panel = *job.panel;
  for (int64_t t = 0; t < qwinograd_range(job.counts, 0, 0).end; t++) {
    const QwinogradTile& tile = job.tiles[t];
    for (int y = 0; y < tile.rows; y++) {
      for (int x = 0; x < tile.columns; x++) {
        const int64_t at = tile.output + y * job.line + x * job.pixel;
        for (int c = 0; c < panel.columns; c++) {
          const uint8_t* residual = job.residual != nullptr ? job.residual + at + c : nullptr;
          const int32_t sum = sum_at<kSize>(job, t, y, x, c);
          job.out[at + c] = finish_sum(*job.finish, sum, panel.bias[c], panel.multiplier[c], residual);
        }
      }
    }
  }
}

}  // namespace

const QwinogradKernel qwinograd_scalar_2x2 = {
    2, Matrices<2>::kShift, kColumns, 2, 384 << 10, 16, {}, transform<2>, run<2>};
const QwinogradKernel qwinograd_scalar_4x4 = {
    4, Matrices<4>::kShift, kColumns, 2, 384 << 10, 16, {}, transform<4>, run<4>};

}  // namespace qtool
