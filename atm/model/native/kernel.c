#include "kernel.h"

#include <sched.h>

typedef struct Work {
  void (*take)(const void *facts, int share);
  int shares;
  atomic_int next, done, users;
  void *facts;  // of the call, of a type that `take` knows
} Work;

static atomic_int calls;  // under way, of all programs of this process

static void release(Work *p) {
  if (atomic_fetch_sub(&p->users, 1) > 1) return;
  free(p->facts);
  free(p);
}

// Takes shares until there are no more; who comes late finds none.
static void take_shares(void *data) {
  Work *p = data;
  int share;
  while ((share = atomic_fetch_add(&p->next, 1)) < p->shares) {
    p->take(p->facts, share);
    atomic_fetch_add(&p->done, 1);
  }
  release(p);
}

static void destroy(const XLA_FFI_Api *api, XLA_FFI_Error *error) {
  XLA_FFI_Error_Destroy_Args args = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE,
                                     NULL, error};
  api->XLA_FFI_Error_Destroy(&args);
}

static int count_threads(XLA_FFI_CallFrame *frame) {
  int64_t count = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {
      XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx, &count};
  XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_NumThreads(&args);
  if (!error) return count;
  destroy(frame->api, error);
  return 1;
}

static void wake(XLA_FFI_CallFrame *frame, Work *p) {
  XLA_FFI_ThreadPool_Schedule_Args args = {
      XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx,
      take_shares, p};
  atomic_fetch_add(&p->users, 1);
  XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_Schedule(&args);
  if (!error) return;
  destroy(frame->api, error);
  release(p);
}

int atm_begin(XLA_FFI_CallFrame *frame, int64_t worth) {
  // A core that is in another call is not asked to help.
  const int64_t threads = count_threads(frame) - atomic_fetch_add(&calls, 1);
  const int64_t count = least(threads, worth);
  return count > 1 ? 2 * count : 1;
}

void atm_finish(XLA_FFI_CallFrame *frame, int shares, void *facts,
                void (*take)(const void *, int)) {
  Work *p = calloc(1, sizeof(Work));
  p->take = take, p->shares = shares, p->facts = facts;
  atomic_store(&p->users, 2);
  for (int i = 0; i < shares / 2; i++) wake(frame, p);
  take_shares(p);
  for (int spins = 0; atomic_load(&p->done) < shares; spins++)
    if (spins > 1000) sched_yield();
  atomic_fetch_sub(&calls, 1);
  release(p);
}

XLA_FFI_Error *atm_handle(XLA_FFI_CallFrame *frame,
                          void (*run)(XLA_FFI_CallFrame *)) {
  XLA_FFI_Extension_Base *asked = frame->extension_start;
  if (asked && asked->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata *told = ((XLA_FFI_Metadata_Extension *)asked)->metadata;
    told->api_version.major_version = XLA_FFI_API_MAJOR;
    told->api_version.minor_version = XLA_FFI_API_MINOR;
    told->traits = 0;
  } else if (frame->stage == XLA_FFI_ExecutionStage_EXECUTE) {
    run(frame);
  }
  return NULL;
}
