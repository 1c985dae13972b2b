# Defines ddl::libtorch: the CPU part of LibTorch, as the PyTorch wheel carries it; with DDL_CUDA also ddl::libtorch_cuda.
#
# libtorch_cpu.so and libc10.so are linked by name instead of libtorch.so, which would pull in libtorch_cuda.so and with
# it the rest of CUDA. libtorch_cpu.so itself needs the CUDA runtime and CUPTI to load, so their folder is on the run path.

# The site-packages folder with torch/ and nvidia/: from DDL_LIBTORCH_ROOT, else the project's .venv, else $DDL_VENV.
set(_ddl_candidates "")
foreach(_venv ${PROJECT_SOURCE_DIR}/.venv $ENV{DDL_VENV})
  file(GLOB _found LIST_DIRECTORIES true ${_venv}/lib/python3*/site-packages)
  list(APPEND _ddl_candidates ${_found})
endforeach()
find_path(DDL_LIBTORCH_ROOT torch/include/ATen/ATen.h PATHS ${_ddl_candidates} NO_DEFAULT_PATH
          DOC "The site-packages folder that holds torch/ and nvidia/ (scripts/requirements-libtorch.txt)")
if(NOT DDL_LIBTORCH_ROOT)
  message(FATAL_ERROR "LibTorch was not found: no torch/ in .venv or in $DDL_VENV. Run scripts/install_dependencies.sh, "
                      "or set DDL_LIBTORCH_ROOT to a site-packages folder that holds torch/ and nvidia/.")
endif()

set(DDL_LIBTORCH_LIB_DIR ${DDL_LIBTORCH_ROOT}/torch/lib)
set(DDL_CUDA_LIB_DIR ${DDL_LIBTORCH_ROOT}/nvidia/cu13/lib)
foreach(_file ${DDL_LIBTORCH_LIB_DIR}/libtorch_cpu.so ${DDL_LIBTORCH_LIB_DIR}/libc10.so ${DDL_CUDA_LIB_DIR}/libcudart.so.13)
  if(NOT EXISTS ${_file})
    message(FATAL_ERROR "LibTorch in ${DDL_LIBTORCH_ROOT} is incomplete: ${_file} is missing "
                        "(scripts/requirements-libtorch.txt names the packages).")
  endif()
endforeach()

add_library(ddl_libtorch INTERFACE)
add_library(ddl::libtorch ALIAS ddl_libtorch)
# The wheel's include/ also holds an older google/protobuf. -idirafter, unlike -I and -isystem, lets the system's win.
target_compile_options(ddl_libtorch INTERFACE
  "SHELL:-idirafter ${DDL_LIBTORCH_ROOT}/torch/include"
  "SHELL:-idirafter ${DDL_LIBTORCH_ROOT}/torch/include/torch/csrc/api/include")
# Lets ccache look through precompiled headers.
target_compile_options(ddl_libtorch INTERFACE $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
# at::parallel_for is a template whose threads come from OpenMP, in whoever instantiates it: without -fopenmp it runs on one. The
# library is LibTorch's own copy, so that there is one team of threads.
target_compile_options(ddl_libtorch INTERFACE -fopenmp)
target_link_libraries(ddl_libtorch INTERFACE
  ${DDL_LIBTORCH_LIB_DIR}/libtorch_cpu.so ${DDL_LIBTORCH_LIB_DIR}/libc10.so ${DDL_LIBTORCH_LIB_DIR}/libgomp.so.1)
target_link_options(ddl_libtorch INTERFACE "LINKER:-rpath-link,${DDL_LIBTORCH_LIB_DIR}:${DDL_CUDA_LIB_DIR}")

if(DDL_CUDA)
  # libcublasLt.so stands for what libtorch_cuda.so loads; a build for another machine (DDL_BUILD_SERVER=OFF) runs with that one's.
  set(_cuda_files ${DDL_LIBTORCH_LIB_DIR}/libc10_cuda.so ${DDL_LIBTORCH_LIB_DIR}/libtorch_cuda.so)
  if(DDL_BUILD_SERVER)
    list(APPEND _cuda_files ${DDL_CUDA_LIB_DIR}/libcublasLt.so.13)
  endif()
  foreach(_file ${_cuda_files})
    if(NOT EXISTS ${_file})
      message(FATAL_ERROR "LibTorch in ${DDL_LIBTORCH_ROOT} lacks its CUDA part: ${_file} is missing. Run "
                          "scripts/install_dependencies.sh cuda, or set DDL_LIBTORCH_ROOT to where the whole of torch is installed.")
    endif()
  endforeach()
  # CMake 3.25's FindCUDAToolkit, which is Debian 12's, takes this library of older CUDAs for granted, and fails where it is not.
  add_library(CUDA::nvToolsExt INTERFACE IMPORTED GLOBAL)
  # libtorch_cuda.so, which pulls in 3 GB, is only loaded once a GPU has been found (model/device/cuda/runtime.cc).
  add_library(ddl_libtorch_cuda INTERFACE)
  add_library(ddl::libtorch_cuda ALIAS ddl_libtorch_cuda)
  target_link_libraries(ddl_libtorch_cuda INTERFACE ddl_libtorch ${DDL_LIBTORCH_LIB_DIR}/libc10_cuda.so
                                                    ${DDL_CUDA_LIB_DIR}/libcudart.so.13 ${CMAKE_DL_LIBS})
endif()
