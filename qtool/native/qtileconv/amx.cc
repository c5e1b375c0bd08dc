// Blocks of 2 x 2 tiles (32 pixels x 32 channels), 4 x 1 or 1 x 4. The sums' way to bytes is that of AVX-512, 64 sums a
// part.
#include "core/tile_product.h"
#include "qconv/finish_avx512.h"
#include "qtileconv/qtileconv.h"

namespace qtool {
namespace {

template <int R, bool RESIDUAL>
struct Layer {
  static constexpr int V = 4 / R;
  const QtileconvJob& job;

  TileColumns columns(int64_t panel) const {
    const QtileconvPanel& p = job.panels[panel];
    const int64_t step = V * 1024;
    return {p.weight, step, 1024, 64, p.start, 16, p.weight + job.steps * step, job.steps * step / 64};
  }

  // A call of its own: inlined, it would take the registers of the loop over the steps.
  __attribute__((noinline)) void finish(const TileSums& done, int from, int count) const {
    if (done.block < 0) return;
    for (int part = from; part < from + count; part++) finish_part(done, part);
  }

  // 4 / V rows.
  inline __attribute__((always_inline)) void finish_part(const TileSums& done, int part) const {
    const QtileconvPanel& p = job.panels[done.panel];
    const int first = part * 4 / V;
    const int64_t* outputs = job.outputs + done.block * R * 16 + first;
    const int32_t* sums = done.sums + first / 16 * V * kTileSums + first % 16 * 16;
    __m512i q[4];
    UNROLL for (int i = 0; i < 4; i++) {
      const int v = i % V, column = v * kLanes;
      __m512 r = scaled(_mm512_load_si512(sums + v * kTileSums + i / V * 16), p.bias + column, p.multiplier + column);
      if (RESIDUAL) {
        const int64_t at = outputs[i / V];
        const __mmask64 lanes = at < 0 ? 0 : first_lanes(p.columns) >> column;
        r = with_residual(*job.finish, r, job.residual + p.output + at + column, lanes);
      }
      q[i] = to_integers(*job.finish, r);
    }
    const __m512i bytes = packed(*job.finish, q);
    UNROLL for (int i = 0; i < 4 / V; i++) {
      if (outputs[i] >= 0) store_bytes<V>(job.out + p.output + outputs[i], bytes, i, p.columns);
    }
  }
};

template <int R, bool RESIDUAL>
void run_blocks(const QtileconvJob& job) {
  const Layer<R, RESIDUAL> layer = {job};
  const TileRows rows = {job.tiles, job.blocks, job.pitch, job.steps, job.offsets};
  tile_product<R>(rows, job.panel_count, layer);
}

template <int R>
void run_rows(const QtileconvJob& job) {
  if (job.residual != NULL) {
    run_blocks<R, true>(job);
  } else {
    run_blocks<R, false>(job);
  }
}

void run(const QtileconvJob& job) {
  if (job.row_tiles == 2) {
    run_rows<2>(job);
  } else if (job.row_tiles == 4) {
    run_rows<4>(job);
  } else {
    run_rows<1>(job);
  }
}

void gather(const QtileconvGather& g) {
  for (int64_t row = 0; row < g.count; row++) {
    uint8_t* to = g.rows + row * g.pitch;
    for (int64_t run = 0; run < g.runs; run++, to += g.length) {
      const uint8_t* from = g.source + row * g.step + g.offsets[run];
      for (int64_t i = 0; i < g.length; i += 64) _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
    }
  }
}

}  // namespace

const QtileconvKernel qtileconv_amx = {gather, run};

}  // namespace qtool
