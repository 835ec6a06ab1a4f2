// Attention of few queries to a cache: softmax(q k' / sqrt(K)) v.
//
// Queries [R, n, H, K], mask [B, n or 1, S]. Keys and values are in groups of
// rows, and a group's in blocks of positions: keys [B, H, K, T], values [B, H,
// T, K]. Adjacent rows share keys where R is a multiple of B.

#include "kernel.h"

typedef struct {
  const float *query;
  const uint8_t *mask;
  float *out;
  int64_t R, n, H, K, S, per_input;  // queries' rows that share keys
  int64_t masks;                     // n, or 1: one for all queries of a row
  int groups, blocks;
  const XLA_FFI_Buffer *const *held;  // each group's keys, then its values
  int64_t tasks, per_share;
} Attention;

// Returns e^x for x <= 0, within 2 units in the last place.
INLINE vector exponential(vector x) {
  const vector low = {0}, magic = low + 12582912.f;  // 1.5 * 2^23
  const integers least = x < low - 87.f;
  x = (vector)((least & (integers)(low - 87.f)) | (~least & (integers)x));
  const vector rounded = x * 1.44269504f + magic, n = rounded - magic;
  const vector r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  vector y = low + 1.9875691500e-4f;  // Cephes' polynomial (Moshier, 1992)
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.f;
  const integers bits = (integers)rounded << 23;
  return (vector)((integers)y + bits);
}

// Writes q' keys [K, pitch] of `count` positions. While it reads them those of
// the next head, which lie behind, are fetched.
static void score(const float *q, const float *keys, int64_t K, int64_t pitch,
                  int64_t count, float *out) {
  const float *ahead = keys + K * pitch;
  int64_t t = 0;
  for (; t + 4 * WIDTH <= count; t += 4 * WIDTH) {
    vector sum[4] = {{0}};
    for (int64_t k = 0; k < K; k++)
      UNROLL for (int v = 0; v < 4; v++) {
        const int64_t at = k * pitch + t + v * WIDTH;
        sum[v] = fuse(q[k], *(vector *)(keys + at), sum[v]);
        __builtin_prefetch(ahead + at, 0, 2);
      }
    UNROLL for (int v = 0; v < 4; v++) *(vector *)(out + t + v * WIDTH) = sum[v];
  }
  for (; t + WIDTH <= count; t += WIDTH) {
    vector sum = {0};
    for (int64_t k = 0; k < K; k++) {
      sum = fuse(q[k], *(vector *)(keys + k * pitch + t), sum);
      __builtin_prefetch(ahead + k * pitch + t, 0, 2);
    }
    *(vector *)(out + t) = sum;
  }
  for (; t < count; t++) {
    float sum = 0;
    for (int64_t k = 0; k < K; k++) sum = fmaf(q[k], keys[k * pitch + t], sum);
    out[t] = sum;
  }
}

// Adds to out [K] what the first `count` of values [T, K] weigh. While it reads
// them those of the next head, `next` floats behind, are fetched.
static void weigh(const float *weights, const float *values, int64_t K,
                  int64_t count, int64_t next, float *out) {
  int64_t k = 0;
  for (; k + 4 * WIDTH <= K; k += 4 * WIDTH) {
    vector sum[4];
    UNROLL for (int v = 0; v < 4; v++) sum[v] = *(vector *)(out + k + v * WIDTH);
    for (int64_t t = 0; t < count; t++)
      UNROLL for (int v = 0; v < 4; v++) {
        const float *at = values + t * K + k + v * WIDTH;
        sum[v] = fuse(weights[t], *(vector *)at, sum[v]);
        __builtin_prefetch(at + next, 0, 2);
      }
    UNROLL for (int v = 0; v < 4; v++) *(vector *)(out + k + v * WIDTH) = sum[v];
  }
  for (; k + WIDTH <= K; k += WIDTH) {
    vector sum = *(vector *)(out + k);
    for (int64_t t = 0; t < count; t++)
      sum = fuse(weights[t], *(vector *)(values + t * K + k), sum);
    *(vector *)(out + k) = sum;
  }
  for (; k < K; k++)
    for (int64_t t = 0; t < count; t++)
      out[k] = fmaf(weights[t], values[t * K + k], out[k]);
}

// Turns scores [S] into weights, which are not divided by their sum yet: that
// is returned. Both arrays are written behind S, up to a vector.
static float exponentiate(float *scores, uint8_t *mask, int64_t S,
                          float scale) {
  const vector none = (vector){0} - INFINITY;
  vector best = none, total = {0};
  memset(mask + S, 0, WIDTH);
  for (int64_t t = 0; t < S; t += WIDTH) {
    const integers seen =
        __builtin_convertvector(*(bytes *)(mask + t), integers) != 0;
    integers *bits = (integers *)(scores + t);
    *bits = (*bits & seen) | ((integers)none & ~seen);
    const vector x = *(vector *)bits;
    const integers above = x > best;
    best = (vector)(((integers)x & above) | ((integers)best & ~above));
  }
  float greatest = -INFINITY, sum = 0;
  for (int i = 0; i < WIDTH; i++)
    if (best[i] > greatest) greatest = best[i];
  for (int64_t t = 0; t < S; t += WIDTH) {
    vector *x = (vector *)(scores + t);
    const integers seen = *x != none;
    const vector y = exponential((*x - greatest) * scale);
    *x = (vector)((integers)y & seen);
    total += *x;
  }
  for (int i = 0; i < WIDTH; i++) sum += total[i];
  return sum;
}

// What a thread writes while it attends: S of each, and a vector more.
typedef struct {
  float *scores;
  uint8_t *mask;
} Scratch;

// One query of one head.
static void attend(const Attention *p, int64_t row, int64_t i, int64_t head,
                   const XLA_FFI_Buffer *const *held, int64_t input,
                   const Scratch *own) {
  const int64_t at = ((row * p->n + i) * p->H + head) * p->K;
  const float *query = p->query + at;
  float *out = p->out + at;
  const uint8_t *mask =
      p->mask + (row / p->per_input * p->masks + i % p->masks) * p->S;
  int64_t S = p->S;
  while (S && !mask[S - 1]) S--;  // what is behind is not read
  memcpy(own->mask, mask, S);
  memset(out, 0, sizeof(float) * p->K);
  for (int64_t b = 0, at = 0; at < S; b++) {
    const int64_t T = held[b]->dims[3];
    const float *keys = held[b]->data;
    score(query, keys + (input * p->H + head) * p->K * T, p->K, T,
          least(T, S - at), own->scores + at);
    at += T;
  }
  const float sum = exponentiate(own->scores, own->mask, S, 1 / sqrtf(p->K));
  for (int64_t b = 0, at = 0; at < S; b++) {
    const int64_t T = held[b]->dims[3];
    const float *values = held[p->blocks + b]->data;
    weigh(own->scores + at, values + (input * p->H + head) * T * p->K, p->K,
          least(T, S - at), T * p->K, out);
    at += T;
  }
  for (int64_t k = 0; k < p->K; k++) out[k] = sum > 0 ? out[k] / sum : 0;
}

// A task is a head of the rows that share keys.
static void take_attention(const void *facts, int share) {
  const Attention *p = facts;
  const Scratch own = {malloc(sizeof(float) * (p->S + WIDTH)),
                       malloc(p->S + WIDTH)};
  const int64_t end = least((share + 1) * p->per_share, p->tasks);
  for (int64_t task = share * p->per_share; task < end; task++) {
    int64_t input = task / p->H, top = input * p->per_input;
    const XLA_FFI_Buffer *const *held = p->held;
    while (input >= held[0]->dims[0])
      input -= held[0]->dims[0], held += 2 * p->blocks;
    for (int64_t row = top; row < top + p->per_input; row++)
      for (int64_t i = 0; i < p->n; i++)
        attend(p, row, i, task % p->H, held, input, &own);
  }
  free(own.scores);
  free(own.mask);
}

static void run_attention(XLA_FFI_CallFrame *frame) {
  const XLA_FFI_Buffer *const *in = (void *)frame->args.args;
  const XLA_FFI_Buffer *const *out = (void *)frame->rets.rets;
  const int64_t *q = in[0]->dims, *m = in[1]->dims;
  Attention *p = calloc(1, sizeof(Attention));
  p->query = in[0]->data, p->mask = in[1]->data, p->out = out[0]->data;
  p->R = q[0], p->n = q[1], p->H = q[2], p->K = q[3];
  p->masks = m[1], p->S = m[2], p->held = in + 2;
  // A group's blocks have S positions together.
  for (int64_t S = 0; S < p->S; p->blocks++) S += p->held[p->blocks]->dims[3];
  p->per_input = p->R / m[0];
  p->tasks = m[0] * p->H;
  int count = atm_begin(frame, p->R * p->H * p->K * p->S >> 19);
  p->per_share = divide(p->tasks, count);
  count = divide(p->tasks, p->per_share);
  atm_finish(frame, count, p, take_attention);
}

// (queries, mask, keys, values) -> [R, n, H, K]
XLA_FFI_Error *atm_attention(XLA_FFI_CallFrame *frame) {
  return atm_handle(frame, run_attention);
}
