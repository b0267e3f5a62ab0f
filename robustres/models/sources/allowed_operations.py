"""The ATen operations that a file may use: the forward operations of image classifiers, without random numbers.

Every one of them checks its arguments against the tensors that it receives. Operations that do not (the backward ones
do not check indices), that write to given locations, draw random numbers, or access files are excluded.
"""

LAYERS = """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution
    linear bilinear
    mm bmm matmul addmm baddbmm addbmm mv addmv dot inner outer einsum tensordot linalg_vecdot linalg_vector_norm
    batch_norm _native_batch_norm_legit_no_training layer_norm native_layer_norm group_norm native_group_norm
    instance_norm rms_norm _fused_rms_norm local_response_norm
    scaled_dot_product_attention dropout feature_dropout alpha_dropout native_dropout embedding
"""
POOLING = """
    max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d
    upsample_bicubic2d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa grid_sampler grid_sampler_2d affine_grid_generator
    pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im
    pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d _pad_circular
"""
ELEMENTWISE = """
    relu relu6 leaky_relu prelu _prelu_kernel rrelu elu selu celu gelu silu mish hardtanh hardsigmoid hardswish
    hardshrink softshrink tanhshrink softplus softsign log_sigmoid sigmoid tanh threshold glu softmax _softmax
    log_softmax _log_softmax logsumexp softmin
    add sub rsub mul div true_divide divide multiply subtract floor_divide remainder fmod neg negative abs absolute
    sign square sqrt rsqrt reciprocal pow exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan atan2 sinh
    cosh erf erfc floor ceil round trunc frac clamp clamp_min clamp_max clip minimum maximum fmin fmax lerp addcmul
    addcdiv where masked_fill nan_to_num eq ne lt le gt ge logical_and logical_or logical_not logical_xor
    bitwise_and bitwise_or bitwise_not isnan isinf isfinite hypot xlogy
"""
SHAPE = """
    view _unsafe_view view_copy reshape flatten unflatten squeeze unsqueeze permute transpose t numpy_T movedim swapaxes
    swapdims moveaxis flip roll rot90 slice select narrow expand expand_as repeat repeat_interleave tile split
    split_with_sizes unsafe_split chunk unsafe_chunk unbind tensor_split cat concat concatenate stack hstack vstack
    view_as reshape_as unfold index index_select gather tril triu diagonal
    sum mean prod max min amax amin argmax argmin var std var_mean std_mean norm cumsum topk sort argsort msort median
    any all count_nonzero aminmax
"""
MAKING = """
    full full_like ones ones_like zeros zeros_like new_full new_ones new_zeros arange linspace eye tensor scalar_tensor
    clone contiguous detach alias lift_fresh_copy lift_fresh positive to _to_copy type_as float double half int long
    bool one_hot
"""
# On sizes and plain numbers, as TorchScript writes them.
NUMBERS = """
    size sym_size numel sym_numel dim stride len Int IntImplicit Float FloatImplicit Bool ScalarImplicit item
    __getitem__ __contains__ __is__ __isnot__ __not__ __and__ __or__ append extend insert list format warn
    is_floating_point device dtype floordiv mod ceil floor sqrt copy _set_item is_complex is_cuda percentFormat
"""
ALLOWED = frozenset(" ".join((LAYERS, POOLING, ELEMENTWISE, SHAPE, MAKING, NUMBERS)).split())


def is_allowed(name: str, overload: str = "") -> bool:
    """Whether a file may use aten.NAME.OVERLOAD; in-place forms are treated like the out-of-place ones."""
    base = name if name.startswith("_") or not name.endswith("_") else name.removesuffix("_")
    return (name in ALLOWED or base in ALLOWED) and "out" not in overload.split("_")
