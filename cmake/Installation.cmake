# `cmake --install` gives a folder that runs wherever it is moved to:
#   bin/ddl_server   lib/ (LibTorch's libraries, found through $ORIGIN/../lib)   share/ddl/models/ddl-demo   share/doc/ddl
# The libraries that come from Debian (gRPC, protobuf, prometheus-cpp, PCRE2 ...) stay the system's.
if(TARGET ddl_server)
  install(TARGETS ddl_server RUNTIME DESTINATION bin)
endif()
# With CUDA they are 3 GB and find each other by their places in the wheels: an installed server takes them from there.
if(TARGET ddl_server AND NOT DDL_CUDA)
  install(PROGRAMS
            ${DDL_LIBTORCH_LIB_DIR}/libtorch_cpu.so
            ${DDL_LIBTORCH_LIB_DIR}/libc10.so
            ${DDL_LIBTORCH_LIB_DIR}/libgomp.so.1
            ${DDL_CUDA_LIB_DIR}/libcudart.so.13
            ${DDL_CUDA_LIB_DIR}/libcupti.so.13
          DESTINATION lib)
endif()
if(EXISTS ${PROJECT_SOURCE_DIR}/models/ddl-demo)
  install(DIRECTORY models/ddl-demo DESTINATION share/ddl/models)
endif()
install(FILES LICENSE THIRD_PARTY_NOTICES.md DESTINATION share/doc/ddl)
