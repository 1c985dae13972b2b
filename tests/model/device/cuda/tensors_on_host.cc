#include "tests/model/device/cuda/tensors_on_host.h"

#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/model/kernels/cuda/host_memory.h"

namespace ddl::cuda_runtime {
namespace {

namespace cuda_host = kernels::cuda_host;

class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* const p = bytes > 0 ? cuda_host::AllocateDeviceMemory(bytes) : nullptr;
    return {p, p, &cuda_host::FreeDeviceMemory, at::Device(at::kCUDA, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &cuda_host::FreeDeviceMemory; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(cuda_host::OnHost(to), cuda_host::OnHost(from), bytes);
  }
};

class Guard final : public c10::impl::NoOpDeviceGuardImpl<at::kCUDA> {
 public:
  at::Device exchangeDevice(at::Device /*device*/) const override { return getDevice(); }
  at::Device getDevice() const override { return at::Device(at::kCUDA, 0); }
};

class Hooks final : public at::CUDAHooksInterface {
 public:
  explicit Hooks(at::CUDAHooksArgs /*arguments*/) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(at::DeviceIndex /*device*/) const override { return true; }
  at::DeviceIndex deviceCount() const override { return 1; }
  at::DeviceIndex getCurrentDevice() const override { return 0; }
  // As CUDA's: what it does not know is not its own, a null pointer included.
  at::Device getDeviceFromPtr(void* data) const override {
    TORCH_CHECK(cuda_host::IsDeviceMemory(data),
                "The specified pointer resides on host memory and is not registered with any CUDA "
                "device.");
    return at::Device(at::kCUDA, 0);
  }
};

// The same elements as a tensor of the host, or the tensor itself where it is one.
at::Tensor OnHost(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  return at::from_blob(cuda_host::OnHost(tensor.const_data_ptr()), tensor.sizes(), tensor.strides(),
                       at::TensorOptions().dtype(tensor.scalar_type()));
}

at::Tensor Empty(at::IntArrayRef sizes, std::optional<at::ScalarType> type,
                 std::optional<at::Layout> /*layout*/, std::optional<at::Device> /*device*/,
                 std::optional<bool> /*pinned*/, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(sizes, c10::GetAllocator(at::kCUDA),
                                   c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   type.value_or(at::kFloat), format);
}

at::Tensor EmptyStrided(at::IntArrayRef sizes, at::IntArrayRef strides,
                        std::optional<at::ScalarType> type, std::optional<at::Layout> /*layout*/,
                        std::optional<at::Device> /*device*/, std::optional<bool> /*pinned*/) {
  return at::detail::empty_strided_generic(sizes, strides, c10::GetAllocator(at::kCUDA),
                                           c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           type.value_or(at::kFloat));
}

// Between the host and the device, either way, and within the device: the one operator that takes
// tensors of both.
at::Tensor& Copy(at::Tensor& to, const at::Tensor& from, bool /*non_blocking*/) {
  OnHost(to).copy_(OnHost(from));
  return to;
}

at::Tensor CopyAndResize(const at::Tensor& from, const at::Tensor& to) {
  TORCH_CHECK(from.sizes() == to.sizes(), "an operator resizes its result");
  at::Tensor result = to;
  return Copy(result, from, false);
}

void CheckOnDevice(const at::Tensor& tensor, const char* op) {
  TORCH_CHECK(!tensor.defined() || tensor.is_cuda() || tensor.dim() == 0,
              "Expected all tensors to be on the same device, but found at least two devices, "
              "cuda:0 and cpu! (",
              op, ")");
}

// x W^T on the host, a row at a time, whose sums then do not depend on the other rows: the tests
// compare bits.
at::Tensor MultiplyRows(const at::Tensor& x, const at::Tensor& weight, const char* op) {
  CheckOnDevice(x, op);
  CheckOnDevice(weight, op);
  std::vector<at::Tensor> rows;
  for (int64_t row = 0; row < x.size(0); ++row) {
    rows.push_back(at::linear(OnHost(x.narrow(0, row, 1)), OnHost(weight)));
  }
  return at::cat(rows);
}

at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(!bias.has_value() || !bias->defined(), "the model has no biases");
  return MultiplyRows(x, weight, "linear").to(x.device());
}

at::Tensor& MultiplyOut(const at::Tensor& x, const at::Tensor& transposed, at::Tensor& y) {
  return y.copy_(MultiplyRows(x, transposed.t(), "mm"));
}

// In float32, and so returned, as cuBLAS has it.
at::Tensor MultiplyTo(const at::Tensor& x, const at::Tensor& transposed, at::ScalarType type) {
  return MultiplyRows(x.to(type), transposed.t().to(type), "mm").to(x.device());
}

at::Tensor& MultiplyToOut(const at::Tensor& x, const at::Tensor& transposed, at::ScalarType type,
                          at::Tensor& y) {
  return y.copy_(MultiplyRows(x.to(type), transposed.t().to(type), "mm"));
}

// Any other operator: on copies, by the CPU's kernel.
void Fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  for (size_t i = stack->size() - op.schema().arguments().size(); i < stack->size(); ++i) {
    const c10::IValue& argument = (*stack)[i];
    const std::string& name = op.schema().name();
    if (argument.isTensor()) CheckOnDevice(argument.toTensor(), name.c_str());
    if (!argument.isTensorList()) continue;
    for (const at::Tensor& tensor : argument.toTensorVector()) CheckOnDevice(tensor, name.c_str());
  }
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&Fallback>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", &Empty);
  library.impl("empty_strided", &EmptyStrided);
  library.impl("as_strided", &at::native::as_strided_tensorimpl);
  library.impl("view", &at::native::view);
  library.impl("_reshape_alias", &at::native::_reshape_alias);
  library.impl("copy_", &Copy);
  library.impl("_copy_from_and_resize", &CopyAndResize);
  library.impl("linear", &Linear);
  library.impl("mm.out", &MultiplyOut);
  library.impl("mm.dtype", &MultiplyTo);
  library.impl("mm.dtype_out", &MultiplyToOut);
}

// All before main(): LibTorch looks for its hooks once.
const c10::impl::DeviceGuardImplRegistrar guard(at::kCUDA, new Guard());
const bool registered = [] {
  c10::SetAllocator(at::kCUDA, new Allocator());
  at::CUDAHooksRegistry()->Register("CUDAHooks", [](at::CUDAHooksArgs arguments) {
    return std::unique_ptr<at::CUDAHooksInterface>(new Hooks(arguments));
  });
  return true;
}();

}  // namespace

at::Device DeviceOnHost() {
  static_cast<void>(registered);
  return at::Device(at::kCUDA, 0);
}

}  // namespace ddl::cuda_runtime
