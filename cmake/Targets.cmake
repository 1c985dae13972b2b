# The functions with which every folder declares what it builds.
#
#   ddl_library(NAME SOURCES file... [DEPENDS target...] [PUBLIC_HEADERS_ONLY])
#   ddl_executable(NAME SOURCES file... [DEPENDS target...])
#   ddl_test(NAME SOURCES file... [DEPENDS target...] [LABELS label...] [TIMEOUT seconds])
#
# DEPENDS names our own targets and imported ones (gRPC::grpc++, absl::status, ddl::libtorch ...); they are linked PUBLIC,
# so that a dependency's own dependencies need not be repeated. Includes are written from the project's root.

# Compiler and linker settings of everything that is ours; third-party headers do not see the warnings.
add_library(ddl_settings INTERFACE)
target_include_directories(ddl_settings INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(ddl_settings INTERFACE
  -Wall -Wextra -Wnon-virtual-dtor -Woverloaded-virtual -Werror=return-type -Werror=uninitialized -Werror=format
  -Werror=switch -Werror=unused-result -Werror=delete-non-virtual-dtor)
if(DDL_WARNINGS_AS_ERRORS)
  target_compile_options(ddl_settings INTERFACE -Werror)
endif()
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  target_compile_options(ddl_settings INTERFACE -Wthread-safety -Werror=thread-safety)
endif()
target_link_libraries(ddl_settings INTERFACE Threads::Threads)

# Sanitizers are for the whole build: a program whose parts disagree reports nonsense.
if(DDL_SANITIZE)
  add_compile_options(-fsanitize=${DDL_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${DDL_SANITIZE})
endif()

function(ddl_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;DEPENDS")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "ddl_library(${name}): unknown arguments: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  set(sources ${arg_SOURCES})
  list(FILTER sources INCLUDE REGEX "\\.(cc|cu)$")
  if(sources)
    add_library(${name} STATIC ${arg_SOURCES})
    target_link_libraries(${name} PRIVATE ddl_settings PUBLIC ${arg_DEPENDS})
    target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  else()  # headers only
    add_library(${name} INTERFACE ${arg_SOURCES})
    target_link_libraries(${name} INTERFACE ${arg_DEPENDS})
    target_include_directories(${name} INTERFACE ${PROJECT_SOURCE_DIR})
  endif()
endfunction()

function(ddl_executable name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;DEPENDS")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "ddl_executable(${name}): unknown arguments: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ddl_settings ${arg_DEPENDS})
  # DT_RPATH-like search: the build tree's binary finds libtorch's own dependencies from anywhere, without LD_LIBRARY_PATH.
  set_target_properties(${name} PROPERTIES
    BUILD_RPATH "${DDL_LIBTORCH_LIB_DIR};${DDL_CUDA_LIB_DIR}"
    INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
endfunction()

# One ctest entry per program. A program whose every test is skipped counts as skipped; scripts/run_tests.sh lists the
# reason of each skipped test, those inside of programs that passed included.
function(ddl_test name)
  if(NOT DDL_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "TIMEOUT" "SOURCES;DEPENDS;LABELS")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "ddl_test(${name}): unknown arguments: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  ddl_executable(${name} SOURCES ${arg_SOURCES} DEPENDS ${arg_DEPENDS} GTest::gmock_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${arg_TIMEOUT} LABELS "${arg_LABELS}")
endfunction()
