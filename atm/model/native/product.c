// Products with a packed matrix in float32: y = x W + b.
//
// W [A, B] is packed: [ceil(B / PANEL), A, PANEL], panels of PANEL columns, with
// zeros behind the last. N rows: x [N, A], b [B], y [N, B].

#include "kernel.h"

enum {
  DEPTH = 256,       // rows of W at a time: so many of a panel fit a first cache
  GROUP = 8 * ROWS,  // rows of x at a time: so many, DEPTH long, fit a second
  AHEAD = 32,        // rows of a panel that are fetched ahead
};

typedef struct {
  const float *x, *w, *b;
  float *y;
  int64_t N, A, B;
  Shares shares;
} Product;

// What a tile is of; the same for all tiles of a panel and DEPTH rows of it.
typedef struct {
  const float *bias;  // of the panel, or NULL before the last rows of W
  int64_t A, pitch;   // floats from a row of x to the next, and of y
  int depth, begins;  // rows of W; y is 0 so far
} Part;

// Adds to y [rows, pitch], as wide as a tile, x w.
//   x: [rows, A]; w: [depth, PANEL], of which a tile's columns are read.
//   ahead: [depth, PANEL], fetched: the first 16 columns of each row, or 32.
INLINE void add_tile(const int rows, const Part *p, const float *x,
                     const float *w, float *y, const int n,
                     const float *ahead, const int both) {
  vector sum[ROWS][COLUMNS];
  const int64_t A = p->A, pitch = p->pitch;
  w += n, y += n;
  UNROLL for (int i = 0; i < rows; i++)
  UNROLL for (int v = 0; v < COLUMNS; v++)
    sum[i][v] = p->begins ? (vector){0} : *(vector *)(y + i * pitch + v * WIDTH);
  for (int k = p->depth; k > 0; k--, w += PANEL, x++, ahead += PANEL) {
    vector read[COLUMNS];
    UNROLL for (int v = 0; v < COLUMNS; v++)
      read[v] = *(vector *)(w + v * WIDTH);
    __builtin_prefetch(ahead, 0, 2);
    if (both) __builtin_prefetch(ahead + 16, 0, 2);
    UNROLL for (int i = 0; i < rows; i++)
    UNROLL for (int v = 0; v < COLUMNS; v++) {
      sum[i][v] = fuse(x[i * A], read[v], sum[i][v]);
    }
  }
  UNROLL for (int v = 0; v < COLUMNS; v++) {
    vector bias = {0};
    if (p->bias) bias = *(vector *)(p->bias + n + v * WIDTH);
    UNROLL for (int i = 0; i < rows; i++)
      *(vector *)(y + i * pitch + v * WIDTH) = sum[i][v] + bias;
  }
}

// The same of a whole panel, for some of ROWS rows.
static void add_panel(const int rows, const Part *p, const float *x,
                      const float *w, float *y, const float *ahead,
                      const int both) {
  for (int n = 0; n < PANEL; n += COLUMNS * WIDTH) {
#define CASE(count)                                \
  case count:                                      \
    if (both)                                      \
      add_tile(count, p, x, w, y, n, ahead, 1);    \
    else                                           \
      add_tile(count, p, x, w, y, n, ahead, 0);    \
    break;
    switch (rows) {
      CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined(__AVX512F__)
      CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
  }
}

// Rows [m, end) times a panel that begins at column n, rows of it from k on.
static void multiply(const Product *p, int64_t m, int64_t end, int64_t n,
                     int64_t k) {
  float edge[ROWS * PANEL], bias[PANEL];
  const int64_t columns = least(PANEL, p->B - n);
  const int depth = least(DEPTH, p->A - k);
  const int is_last = k + depth == p->A, is_one = end - m <= ROWS;
  const float *w = p->w + n * p->A + k * PANEL, *next = w + p->A * PANEL;
  if (is_last) memcpy(bias, p->b + n, sizeof(float) * columns);
  const Part part = {is_last ? bias : NULL, p->A,
                     columns < PANEL ? PANEL : p->B, depth, k == 0};
  for (int64_t i = m; i < end; i += ROWS) {
    const int rows = least(ROWS, end - i);
    const float *x = p->x + i * p->A + k;
    float *y = p->y + i * p->B + n;
    // Read next from memory: by one pass what is just ahead of it, of several
    // passes by the first two the panel behind this one.
    const float *ahead = is_one ? w + AHEAD * PANEL : next + (i > m) * 16;
    if (columns == PANEL) {
      add_panel(rows, &part, x, w, y, ahead, is_one);
      continue;
    }
    for (int r = 0; r < rows && k; r++)
      memcpy(edge + r * PANEL, y + r * p->B, sizeof(float) * columns);
    add_panel(rows, &part, x, w, edge, ahead, is_one);
    for (int r = 0; r < rows; r++)
      memcpy(y + r * p->B, edge + r * PANEL, sizeof(float) * columns);
  }
}

static void take_product(const void *facts, int share) {
  const Product *p = facts;
  const Share s = find_share(&p->shares, p->N, p->B, share);
  for (int64_t m = s.top; m < s.bottom; m += GROUP)
    for (int64_t k = 0; k < p->A; k += DEPTH)
      for (int64_t panel = s.first; panel < s.last; panel++)
        multiply(p, m, least(m + GROUP, s.bottom), panel * PANEL, k);
}

static void run_product(XLA_FFI_CallFrame *frame) {
  XLA_FFI_Buffer **in = (XLA_FFI_Buffer **)frame->args.args;
  XLA_FFI_Buffer **out = (XLA_FFI_Buffer **)frame->rets.rets;
  Product *p = calloc(1, sizeof(Product));
  p->x = in[0]->data, p->w = in[1]->data, p->b = in[2]->data;
  p->y = out[0]->data;
  p->N = in[0]->dims[0], p->A = in[0]->dims[1], p->B = out[0]->dims[1];
  const int count = atm_begin(frame, p->A * p->B * (16 + p->N) >> 20);
  p->shares = divide_product(p->N, p->B, count);
  atm_finish(frame, p->shares.count, p, take_product);
}

// (x, packed W, b) -> y
XLA_FFI_Error *atm_product(XLA_FFI_CallFrame *frame) {
  return atm_handle(frame, run_product);
}
