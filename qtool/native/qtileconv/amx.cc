// Blocks of 2 x 2 tiles (32 pixels x 32 channels), 4 x 1 or 1 x 4. The sums' way to bytes is that of AVX-512, 64 sums a
// part.
#include "core/tile_product.h"
#include "qconv/finish_avx512.h"
#include "qtileconv/qtileconv.h"

namespace qtool {
namespace {

template <int R, bool RESIDUAL>
struct Layer {
  static constexpr int V = 4 / R, kPartRows = R;  // 64 sums
  const QtileconvJob& job;

  TileColumns columns(int64_t panel) const {
    const QtileconvPanel& p = job.panels[panel];
    const int64_t step = V * 1024;
    return {p.weight, step, 1024, 64, p.start, 16, p.weight + job.steps * step, job.steps * step / 64};
  }

  // A call of its own: inlined, it would take the registers of the loop over the steps. Copies, since a store of bytes
  // might change all else.
  __attribute__((noinline)) void finish(const TileSums& done, int from, int count) const {
    if (done.block < 0) return;
    const QtileconvPanel& p = job.panels[done.panel];
    const QconvFinish f = *job.finish;
    const __mmask64 lanes = first_lanes(p.columns);
    uint8_t* out = job.out + p.output;
    const uint8_t* residual = RESIDUAL ? job.residual + p.output : NULL;
    __m512 bias[V], multiplier[V];
    UNROLL for (int v = 0; v < V; v++) {
      bias[v] = _mm512_load_ps(p.bias + v * kLanes);
      multiplier[v] = _mm512_load_ps(p.multiplier + v * kLanes);
    }
    const int64_t* outputs = job.outputs + done.block * R * 16 + from * kPartRows;
    const int64_t* end = outputs + count * kPartRows;
    uint32_t row = static_cast<uint32_t>(from) * kPartRows;
    for (; outputs != end; outputs += kPartRows, row += kPartRows) {
      const int32_t* sums = done.sums + row / 16 * V * kTileSums + row % 16 * kLanes;
      __m512i q[4];
      UNROLL for (int i = 0; i < 4; i++) {
        const int v = i % V;
        __m512 r = scaled(_mm512_load_si512(sums + v * kTileSums + i / V * kLanes), bias[v], multiplier[v]);
        if (RESIDUAL) {
          const int64_t at = outputs[i / V];
          r = with_residual(f, r, residual + at + v * kLanes, at < 0 ? 0 : lanes >> v * kLanes);
        }
        q[i] = to_integers(f, r);
      }
      const __m512i bytes = packed(f, q);
      UNROLL for (int i = 0; i < kPartRows; i++) {
        if (outputs[i] >= 0) store_bytes<V>(out + outputs[i], bytes, i, lanes);
      }
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
