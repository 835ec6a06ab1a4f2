// Products with a packed matrix in int8: y = x W' scaled, + b.
//
// W [B, A], int8, has a scale for each of its B rows, and is packed: [ceil(B /
// PANEL), ceil(A / 4), PANEL, 4], with zeros where there is none. Rows of x [N,
// A], float32, are quantised here, each by its greatest magnitude. Sums are
// whole numbers, so their order changes nothing.

#include "kernel.h"

#if defined(__AVX512VNNI__) || defined(__AVX2__)
#include <immintrin.h>
#endif

enum { GROUP = 8 * ROWS, GREATEST = 127, AHEAD = 4096 };

// `lanes` holds a sum for each of LANES outputs; dot() adds to it products of
// four bytes of x, the same for all outputs, with each output's own four.
#if defined(__AVX512VNNI__)
enum { LANES = 16 };
typedef __m512i lanes;
// The instruction takes x without a sign: 128 is added to it, and 128 times the
// sum of an output's weights taken from its result.
enum { OFFSET = 128 };
INLINE lanes load(const void *p) { return _mm512_loadu_si512(p); }
INLINE void store(void *p, lanes x) { _mm512_storeu_si512(p, x); }
INLINE lanes repeat(int32_t x) { return _mm512_set1_epi32(x); }
INLINE lanes dot(lanes sum, lanes x, lanes w) {
  return _mm512_dpbusd_epi32(sum, x, w);
}
#elif defined(__AVX2__)
enum { LANES = 8, OFFSET = 0 };
typedef __m256i lanes;
INLINE lanes load(const void *p) {
  return _mm256_loadu_si256((const __m256i *)p);
}
INLINE void store(void *p, lanes x) { _mm256_storeu_si256((__m256i *)p, x); }
INLINE lanes repeat(int32_t x) { return _mm256_set1_epi32(x); }
// |w| has no sign, and pairs are at most 2 * 127 * 127: below 2^15.
INLINE lanes dot(lanes sum, lanes x, lanes w) {
  const lanes pairs =
      _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  return _mm256_add_epi32(sum,
                          _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#else
enum { LANES = 8, OFFSET = 0 };
typedef int32_t lanes __attribute__((vector_size(4 * LANES), aligned(4)));
INLINE lanes load(const void *p) { return *(const lanes *)p; }
INLINE void store(void *p, lanes x) { *(lanes *)p = x; }
INLINE lanes repeat(int32_t x) { return (lanes){0} + x; }
INLINE lanes dot(lanes sum, lanes x, lanes w) {
  for (int byte = 24; byte >= 0; byte -= 8)  // signs are kept by the shifts
    sum += ((x << byte) >> 24) * ((w << byte) >> 24);
  return sum;
}
#endif

typedef struct {
  const float *x, *scale, *b;
  const int8_t *w;
  const int32_t *totals;  // of the weights of each output
  float *y;
  int64_t N, A, B, quads;  // of A, fours
  Shares shares;
} Product;

// Rows that are quantised: each `quads` fours, and its scale.
typedef struct {
  int8_t *values;
  float scale[GROUP];
} Rows;

static void quantize(const Product *p, int64_t m, int64_t end, Rows *out) {
  for (int64_t i = 0; m < end; m++, i++) {
    const float *x = p->x + m * p->A;
    int8_t *values = out->values + i * 4 * p->quads;
    integers most = {0};
    int64_t k = 0;
    float greatest = 0;
    for (; k + WIDTH <= p->A; k += WIDTH) {
      const integers size = *(integers *)(x + k) & 0x7fffffff;  // magnitudes
      const integers above = size > most;  // in the order of their bits
      most = (size & above) | (most & ~above);
    }
    for (int j = 0; j < WIDTH; j++)
      greatest = fmaxf(greatest, ((vector)most)[j]);
    for (; k < p->A; k++)
      greatest = fmaxf(greatest, fabsf(x[k]));
    out->scale[i] = greatest / GREATEST;
    const float divisor = out->scale[i] > 0 ? out->scale[i] : 1;
    memset(values + 4 * p->quads - 4, 0, 4);
    for (k = 0; k < p->A; k++)
      values[k] = (int8_t)((int)rintf(x[k] / divisor) + OFFSET);
    for (; k < 4 * p->quads; k++) values[k] = (int8_t)OFFSET;
  }
}

// Writes `rows` rows of y, as wide as two vectors.
//   x: of a row the first four; w: [quads, PANEL, 4] from the first output on.
INLINE void write_tile(const int rows, const Product *p, const int8_t *x,
                       const float *scale, const int8_t *w, int64_t n,
                       float *y, int64_t pitch, int columns) {
  lanes sum[ROWS][2];
  UNROLL for (int i = 0; i < rows; i++)
  UNROLL for (int v = 0; v < 2; v++) sum[i][v] = repeat(0);
  const int64_t length = 4 * p->quads;
  for (int64_t k = 0; k < p->quads; k++, w += 4 * PANEL, x += 4) {
    const lanes first = load(w), second = load(w + 4 * LANES);
    __builtin_prefetch(w + AHEAD, 0, 2);
    if (LANES == 16) __builtin_prefetch(w + AHEAD + 64, 0, 2);
    UNROLL for (int i = 0; i < rows; i++) {
      int32_t four;
      memcpy(&four, x + i * length, 4);
      sum[i][0] = dot(sum[i][0], repeat(four), first);
      sum[i][1] = dot(sum[i][1], repeat(four), second);
    }
  }
  UNROLL for (int i = 0; i < rows; i++) {
    int32_t sums[2 * LANES];
    store(sums, sum[i][0]), store(sums + LANES, sum[i][1]);
    for (int j = 0; j < columns; j++)
      y[i * pitch + j] = (float)(sums[j] - OFFSET * p->totals[n + j]) *
                             scale[i] * p->scale[n + j] +
                         p->b[n + j];
  }
}

static void write_panel(const Product *p, const Rows *x, int64_t first,
                        int64_t count, int64_t n) {
  const int64_t length = 4 * p->quads;
  for (int64_t i = 0; i < count; i += ROWS) {
    const int rows = least(ROWS, count - i);
    for (int c = 0; c < PANEL && n + c < p->B; c += 2 * LANES) {
      const int columns = least(2 * LANES, p->B - n - c);
      float *y = p->y + (first + i) * p->B + n + c;
      const int8_t *w = p->w + n * length + 4 * c;
#define CASE(r)                                                              \
  case r:                                                                    \
    write_tile(r, p, x->values + i * length, x->scale + i, w, n + c, y,      \
               p->B, columns);                                               \
    break;
      switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined(__AVX512F__)
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
      }
    }
  }
}

static void take_product(const void *facts, int share) {
  const Product *p = facts;
  const Share s = find_share(&p->shares, p->N, p->B, share);
  Rows x = {malloc(least(GROUP, p->shares.rows) * 4 * p->quads), {0}};
  for (int64_t m = s.top; m < s.bottom; m += GROUP) {
    const int64_t end = least(m + GROUP, s.bottom);
    quantize(p, m, end, &x);
    for (int64_t panel = s.first; panel < s.last; panel++)
      write_panel(p, &x, m, end - m, panel * PANEL);
  }
  free(x.values);
}

static void run_product(XLA_FFI_CallFrame *frame) {
  XLA_FFI_Buffer **in = (XLA_FFI_Buffer **)frame->args.args;
  XLA_FFI_Buffer **out = (XLA_FFI_Buffer **)frame->rets.rets;
  Product *p = calloc(1, sizeof(Product));
  p->x = in[0]->data, p->w = in[1]->data, p->scale = in[2]->data;
  p->totals = in[3]->data, p->b = in[4]->data, p->y = out[0]->data;
  p->N = in[0]->dims[0], p->A = in[0]->dims[1], p->B = out[0]->dims[1];
  p->quads = in[1]->dims[1];
  const int count = atm_begin(frame, p->A * p->B * (16 + p->N) >> 22);
  p->shares = divide_product(p->N, p->B, count);
  atm_finish(frame, p->shares.count, p, take_product);
}

// (x, packed W, scale, totals, b) -> y
XLA_FFI_Error *atm_int8_product(XLA_FFI_CallFrame *frame) {
  return atm_handle(frame, run_product);
}
