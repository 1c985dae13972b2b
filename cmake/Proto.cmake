# Defines ddl_proto: C++ for proto/ddl/v1/*.proto and the vendored proto/google/rpc/*.proto, messages and gRPC services.
# Includes follow the proto files' own import paths: #include "ddl/v1/inference.grpc.pb.h".
set(_proto_root ${PROJECT_SOURCE_DIR}/proto)
set(_generated ${PROJECT_BINARY_DIR}/generated)
file(GLOB _protos CONFIGURE_DEPENDS ${_proto_root}/ddl/v1/*.proto ${_proto_root}/google/rpc/*.proto)
if(NOT _protos)
  return()
endif()

file(MAKE_DIRECTORY ${_generated})
set(_sources "")
foreach(_proto ${_protos})
  file(RELATIVE_PATH _relative ${_proto_root} ${_proto})
  string(REGEX REPLACE "\\.proto$" "" _stem ${_relative})
  set(_outputs ${_generated}/${_stem}.pb.cc ${_generated}/${_stem}.pb.h
               ${_generated}/${_stem}.grpc.pb.cc ${_generated}/${_stem}.grpc.pb.h)
  add_custom_command(
    OUTPUT ${_outputs}
    COMMAND protobuf::protoc --proto_path=${_proto_root} --cpp_out=${_generated} --grpc_out=${_generated}
            --plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin> ${_proto}
    DEPENDS ${_protos}
    COMMENT "Generating C++ from proto/${_relative}"
    VERBATIM)
  list(APPEND _sources ${_outputs})
endforeach()

add_library(ddl_proto STATIC ${_sources})
target_include_directories(ddl_proto SYSTEM PUBLIC ${_generated})
target_link_libraries(ddl_proto PUBLIC protobuf::libprotobuf gRPC::grpc++ Threads::Threads)
