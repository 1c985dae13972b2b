# `cmake --install` gives a folder that runs wherever it is moved to:
#   bin/ddl_server   lib/ (LibTorch's libraries, found through $ORIGIN/../lib)   share/ddl/models/ddl-demo   share/doc/ddl
# The libraries that come from Debian (gRPC, protobuf, prometheus-cpp, PCRE2 ...) stay the system's.
if(TARGET ddl_server)
  install(TARGETS ddl_server RUNTIME DESTINATION bin)
endif()
if(TARGET ddl_server)
  set(libraries
    ${DDL_LIBTORCH_LIB_DIR}/libtorch_cpu.so
    ${DDL_LIBTORCH_LIB_DIR}/libc10.so
    ${DDL_LIBTORCH_LIB_DIR}/libgomp.so.1
    ${DDL_CUDA_LIB_DIR}/libcudart.so.13
    ${DDL_CUDA_LIB_DIR}/libcupti.so.13)
  if(DDL_CUDA)
    # What libtorch_cuda.so does not load without, 2 GB. Of cuDNN that is a small library which would load the others for a
    # convolution; the server has none.
    set(nvidia ${DDL_LIBTORCH_ROOT}/nvidia)
    list(APPEND libraries
      ${DDL_LIBTORCH_LIB_DIR}/libc10_cuda.so
      ${DDL_LIBTORCH_LIB_DIR}/libtorch_cuda.so
      ${DDL_LIBTORCH_LIB_DIR}/libtorch_nvshmem.so
      ${DDL_CUDA_LIB_DIR}/libcublas.so.13
      ${DDL_CUDA_LIB_DIR}/libcublasLt.so.13
      ${DDL_CUDA_LIB_DIR}/libcufft.so.12
      ${DDL_CUDA_LIB_DIR}/libcufile.so.0
      ${DDL_CUDA_LIB_DIR}/libcurand.so.10
      ${DDL_CUDA_LIB_DIR}/libcusparse.so.12
      ${DDL_CUDA_LIB_DIR}/libnvJitLink.so.13
      ${nvidia}/cudnn/lib/libcudnn.so.9
      ${nvidia}/cusparselt/lib/libcusparseLt.so.0
      ${nvidia}/nccl/lib/libnccl.so.2
      ${nvidia}/nvshmem/lib/libnvshmem_host.so.3)
  endif()
  install(PROGRAMS ${libraries} DESTINATION lib)
endif()
if(EXISTS ${PROJECT_SOURCE_DIR}/models/ddl-demo)
  install(DIRECTORY models/ddl-demo DESTINATION share/ddl/models)
endif()
install(FILES LICENSE THIRD_PARTY_NOTICES.md DESTINATION share/doc/ddl)
