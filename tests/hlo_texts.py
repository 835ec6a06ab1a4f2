"""Compiled HLO as libtpu and XLA write it, most of it left out."""

SIZES = {'slice': 1, 'data': 2, 'fsdp': 64, 'tensor': 1}


# What libtpu 0.0.42 writes for a step of 20b on v5p:4x4x8, most of it left out:
# a loop without a trip count of its own, a kernel whose attributes take several
# lines, one of which begins like the end of a computation, and a sum of
# gradients that each device keeps a part of.
TPU = r"""HloModule jit_train_step, is_scheduled=true

FileNames
1 "/home/me/atm/layers.py"
2 "/usr/lib/flax/linen/module.py"

FunctionNames
1 "<module>"

FileLocations
1 {file_name_id=1 function_name_id=1 line=88 end_line=88 column=4 end_column=4}
2 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=4 end_column=4}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y), backend_config={"estimated_cycles":"9"}
}

%all-reduce-scatter.6 (input: bf16[4096,4096]) -> bf16[64,4096] {
  %input = bf16[4096,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[4096,4096]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=1, replica_groups=mesh['axis_0'=64,'axis_1'=1,'axis_2'=2], device_ids=([2,64]T(1,0)) {'axis_0'}, use_global_device_ids=true, to_apply=%add
  ROOT %slice.1 = bf16[64,4096]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.1, %c, %c), dynamic_slice_sizes={64,4096}
}

%fused (a: bf16[16,4096], b: bf16[4096,4096]) -> bf16[16,4096] {
  %a = bf16[16,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[4096,4096]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[16,4096]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_io->bf
}

%body (p: (s32[], bf16[16,4096])) -> (s32[], bf16[16,4096]) {
  %p = (s32[]{:T(128)}, bf16[16,4096]{1,0:T(8,128)(2,1)}) parameter(0)
  %kernel = (f32[16,512,128]{2,1,0:T(8,128)}, /*index=1*/bf16[16,4096]{1,0:T(8,128)(2,1)}) custom-call(%p), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
 "xprof_metadata":"{\"block_q\": 512}"
}}, metadata={op_name="jit(train_step)/pallas_call" stack_frame_id=2}
  %all-gather.1 = bf16[4096,4096]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=2, replica_groups=mesh['axis_0'=64,'axis_1'=1,'axis_2'=2], device_ids=([2,64]T(1,0)) {'axis_0'}, dimensions={0}, metadata={op_name="jit(train_step)/dot_general" stack_frame_id=1}
  %product = bf16[16,4096]{1,0:T(8,128)(2,1)} fusion(%p, %all-gather.1), kind=kOutput, calls=%fused, metadata={stack_frame_id=1}, backend_config={"estimated_cycles":"1000"}
  %copy.1 = bf16[16,4096]{0,1:T(8,128)(2,1)} copy(%product), backend_config={"estimated_cycles":"10"}
  %unknown = bf16[16,4096]{0,1:T(8,128)(2,1)} negate(%copy.1), backend_config={"estimated_cycles":"9223372036854775807"}
  %fusion.2 = bf16[64,4096]{1,0:T(8,128)(2,1)} fusion(%all-gather.1), kind=kCustom, calls=%all-reduce-scatter.6, metadata={stack_frame_id=1}
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[16,4096]{1,0:T(8,128)(2,1)}) tuple(%p, %product)
}

%condition (p.1: (s32[], bf16[16,4096])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(46)
  %p.1 = (s32[]{:T(128)}, bf16[16,4096]{1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %lt = pred[]{:T(512)} compare(%p.1, %constant.1), direction=LT
}

ENTRY %main (arg: bf16[16,4096]) -> bf16[16,4096] {
  %arg = bf16[16,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %while.1 = (s32[]{:T(128)}, bf16[16,4096]{1,0:T(8,128)(2,1)}) while(%arg), condition=%condition, body=%body
  %all-reduce.2 = f32[1000]{0:T(1024)} all-reduce(%arg), channel_id=3, replica_groups=[64,2]<=[2,64]T(1,0), use_global_device_ids=true, to_apply=%add
  ROOT %out = bf16[16,4096]{1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
}
"""  # noqa: E501


ASYNC = """HloModule m

%inner (p: f32[8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  ROOT %rs = f32[2]{0} reduce-scatter(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

ENTRY %main (a: f32[8]) -> f32[32] {
  %a = f32[8]{0} parameter(0)
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%a), replica_groups=[2,4]<=[8], dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  %async = ((f32[8]{0}), f32[2]{0}, u32[]) async-start(%a), calls=%inner
  %finish = f32[2]{0} async-done(%async)
  ROOT %move = f32[32]{0} collective-permute(%done), source_target_pairs={{0,0},{1,3},{3,1}}
}
"""  # noqa: E501


# A v5e's gather that runs beside a product: written three times, done once.
FUSED = """HloModule m

%begin (p: bf16[32,64]) -> (bf16[32,64], bf16[128,64]) {
  %p = bf16[32,64]{1,0} parameter(0)
  ROOT %gather.1 = bf16[128,64]{1,0} all-gather(%p), channel_id=5, replica_groups=[2,4]<=[8]
}

%async_collective_fusion.7 (q: bf16[32,64], x: bf16[8,64]) -> bf16[8,64] {
  %q = bf16[32,64]{1,0} parameter(0)
  %x = bf16[8,64]{1,0} parameter(1)
  %gather.2 = bf16[128,64]{1,0} all-gather(%q), channel_id=5, replica_groups=[2,4]<=[8]
  ROOT %product = bf16[8,64]{1,0} convolution(%x, %q), dim_labels=bf_io->bf
}

%end (r: bf16[128,64]) -> bf16[128,64] {
  %r = bf16[128,64]{1,0} parameter(0)
  ROOT %gather.3 = bf16[128,64]{1,0} all-gather(%r), channel_id=5, replica_groups=[2,4]<=[8]
}

ENTRY %main (a: bf16[32,64]) -> bf16[128,64] {
  %a = bf16[32,64]{1,0} parameter(0)
  %async-collective-start.1 = (bf16[32,64]{1,0}, bf16[128,64]{1,0}) fusion(%a), kind=kCustom, calls=%begin
  %fusion.1 = bf16[8,64]{1,0} fusion(%a), kind=kOutput, calls=%async_collective_fusion.7, backend_config={"estimated_cycles":"70"}
  ROOT %async-collective-done.1 = bf16[128,64]{1,0} fusion(%a), kind=kCustom, calls=%end
}
"""  # noqa: E501


# A gather by SparseCores, as libtpu 0.0.41 writes it for TPU7x.
SPARSE = """HloModule m

%called_computation.42 (p: bf16[32,64], t: token[]) -> bf16[128,64] {
  %t = token[] parameter(1)
  %p = bf16[32,64]{1,0} parameter(0)
  ROOT %gather.1 = bf16[128,64]{1,0} all-gather(%p), channel_id=3, replica_groups=[2,4]<=[8]
}, execution_thread="sparsecore"

ENTRY %main (a: bf16[32,64]) -> bf16[128,64] {
  %a = bf16[32,64]{1,0} parameter(0)
  %ready = token[] custom-call(), custom_call_target="PrepareAsyncCallDone"
  %gather.call-start = ((bf16[32,64]{1,0}, token[]), bf16[128,64]{1,0}) call-start(%a, %ready), async_execution_thread="sparsecore", to_apply=%called_computation.42
  ROOT %gather.call-done = bf16[128,64]{1,0} call-done(%gather.call-start)
}
"""  # noqa: E501


OFFLOADED = """HloModule m

%turn (p: (s32[], f32[4,256], f32[4,64]{1,0:T(8)S(5)})) -> (s32[], f32[4,256]) {
  %p = (s32[], f32[4,256]{1,0:T(8)S(5)}) parameter(0)
  %dynamic-update-slice-start.1 = ((f32[4,256]{1,0:T(8)S(5)}, f32[1,256]{1,0:T(8)}, s32[], s32[]), f32[4,256]{1,0:T(8)S(5)}, u32[]{:S(2)}) dynamic-update-slice-start(%p)
  %dynamic-slice-start = ((f32[4,64]{1,0:T(8)S(5)}, s32[], s32[]), f32[1,64]{1,0:T(8)}, u32[]{:S(2)}) dynamic-slice-start(%p)
  %product = f32[8]{0} fusion(%p), calls=%product, backend_config={"estimated_cycles":"1000"}
  ROOT %done = (s32[], f32[4,256]{1,0:T(8)S(5)}) tuple(%p)
}

%more (p: (s32[], f32[4,256])) -> pred[] {
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %loop = (s32[], f32[4,256]{1,0:T(8)S(5)}) while(%a), condition=%more, body=%turn, backend_config={"known_trip_count":{"n":"4"}}
  %last = (f32[8]{0:S(5)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%a)
  ROOT %back = (f32[16]{0}, f32[16]{0:S(5)}, u32[]{:S(2)}) copy-start(%a)
}
"""  # noqa: E501


# What libtpu 0.0.42 writes for two slices of v5p:4x4x8, and for one without
# wrapped sides, most of it left out.
SLICES = r"""
ENTRY %main (a: bf16[128,8,128]) -> token[] {
  %a = bf16[128,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %after-all.82 = token[] after-all()
  %send.82 = (bf16[128,8,128]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) send(%a, %after-all.82), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.195_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:127}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send.83 = (bf16[128,8,128]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) send(%a, %after-all.82), channel_id=5, is_host_transfer=true
  ROOT %send-done.82 = token[] send-done(%send.82), channel_id=4
}
"""  # noqa: E501


PADDED = r"""
%fused (p: bf16[1,4096,4096], q: bf16[1,4096,32]) -> bf16[1,4096,4096] {
  %p = bf16[1,4096,4096]{2,1,0} parameter(0)
  %q = bf16[1,4096,32]{2,1,0} parameter(1)
  ROOT %dynamic-update-slice.1 = bf16[1,4096,4096]{2,1,0} dynamic-update-slice(%p, %q)
}

%products (a: bf16[4096,4096]) -> bf16[1,4096,4096] {
  %a = bf16[4096,4096]{1,0} parameter(0)
  ROOT %convolution.1 = bf16[1,4096,4096]{2,1,0} convolution(%a, %a), dim_labels=bf_io->bf
}

ENTRY %main (z: bf16[1,4096,4096], w: bf16[1,4096,32]) -> bf16[1,4096,4096] {
  %z = bf16[1,4096,4096]{2,1,0} parameter(0)
  %w = bf16[1,4096,32]{2,1,0} parameter(1)
  %fusion.1 = bf16[1,4096,4096]{2,1,0} fusion(%z, %w), kind=kLoop, calls=%fused
  %dynamic-update-slice.2 = bf16[1,4096,4096]{2,1,0} dynamic-update-slice(%z, %w)
  %fusion.2 = bf16[1,4096,4096]{2,1,0} fusion(%z), kind=kOutput, calls=%products
  ROOT %all-reduce.1 = (bf16[1,4096,4096]{2,1,0}, bf16[1,4096,4096]{2,1,0}, bf16[1,4096,4096]{2,1,0}, bf16[1,4096,4096]{2,1,0}) all-reduce(%fusion.1, %dynamic-update-slice.2, %fusion.2, %z), channel_id=1, replica_groups=[1,128]<=[128], use_global_device_ids=true, to_apply=%add
}
"""  # noqa: E501
