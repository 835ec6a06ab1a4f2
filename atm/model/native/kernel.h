// What the kernels share: vectors, and threads that take shares of a call.
//
// The bits of a row depend neither on other rows nor on the number of threads:
// each sum is in one order.

#ifndef ATM_KERNEL_H
#define ATM_KERNEL_H

#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__FMA__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/c_api.h"

// WIDTH floats are a vector of the processor.
#if defined(__AVX512F__)
enum { WIDTH = 16, COLUMNS = 2, ROWS = 12 };
#elif defined(__aarch64__)
enum { WIDTH = 4, COLUMNS = 4, ROWS = 6 };
#else
enum { WIDTH = 8, COLUMNS = 2, ROWS = 6 };
#endif

typedef float vector __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int32_t integers __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef uint8_t bytes __attribute__((vector_size(WIDTH), aligned(1)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

// Returns a b + c, rounded once. For AMD's processors GCC rounds twice in some
// loops and not in others, so that the bits of a sum depend on which one runs.
INLINE vector fuse(float a, vector b, vector c) {
  const vector spread = a - (vector){0};
#if defined(__AVX512F__)
  return (vector)_mm512_fmadd_ps((__m512)spread, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vector)_mm256_fmadd_ps((__m256)spread, (__m256)b, (__m256)c);
#else
  return spread * b + c;
#endif
}

INLINE int64_t divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// --- Calls

// Returns how many shares a call is to have: 1, or twice as many as threads.
//   worth: the most threads whose waking is worth it.
int atm_begin(XLA_FFI_CallFrame *frame, int64_t worth);

// Runs all shares, and returns when they are done. Frees `facts`.
void atm_finish(XLA_FFI_CallFrame *frame, int shares, void *facts,
                void (*take)(const void *facts, int share));

// --- Shares of a product of N rows with a packed matrix of B outputs

enum { PANEL = 32 };  // outputs of a matrix that lie together

typedef struct {
  int64_t rows, panels;  // of a share
  int across, count;     // shares side by side, and in all
} Shares;

// Divides a product in about `count` shares, by rows where there are many.
INLINE Shares divide_product(int64_t N, int64_t B, int count) {
  const int64_t panels = divide(B, PANEL);
  const int by_rows = N >= 4 * ROWS * count;
  Shares s;
  s.rows = by_rows ? divide(divide(N, count), ROWS) * ROWS : N;
  s.panels = by_rows ? panels : divide(panels, count);
  s.across = divide(panels, s.panels);
  s.count = divide(N, s.rows) * s.across;
  return s;
}

// Rows [top, bottom) and panels [first, last) of a share.
typedef struct {
  int64_t top, bottom, first, last;
} Share;

INLINE Share find_share(const Shares *s, int64_t N, int64_t B, int number) {
  const int64_t first = number % s->across * s->panels;
  const int64_t top = number / s->across * s->rows;
  return (Share){top, least(top + s->rows, N), first,
                 least(first + s->panels, divide(B, PANEL))};
}

// What an XLA_FFI_Handler returns that runs a kernel.
XLA_FFI_Error *atm_handle(XLA_FFI_CallFrame *frame,
                          void (*run)(XLA_FFI_CallFrame *));

#endif
