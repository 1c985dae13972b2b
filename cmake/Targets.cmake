# The functions with which every folder declares what it builds.
#
#   ddl_library(NAME SOURCES file... [DEPENDS target...])        without a .cc among the sources: a header-only library
#   ddl_executable(NAME SOURCES file... [DEPENDS target...])     lands in bin/
#   ddl_test(NAME SOURCES file... [DEPENDS target...] [LABELS label...] [TIMEOUT seconds] [SERIAL])
#   ddl_python_test(NAME SOURCES file... [LABELS label...] [TIMEOUT seconds] [SERIAL])
#
# DEPENDS names our own targets and imported ones (gRPC::grpc++, absl::status, PkgConfig::PCRE2, ddl::libtorch ...). They are
# linked PUBLIC, so that a dependency's own dependencies need not be repeated. Includes are written from the project's root.
# A header belongs to the library that names it or the .cc beside it; who includes it must link that, and a library of the server
# must include something of what it links: scripts/include_graph.py reads all this from targets.tsv, and a test calls it.
#
# A test is one entry of ctest per program, and runs in the project's root. The label `long` keeps it out of `make test`;
# SERIAL keeps others from running beside it (it measures time, or wants the machine). TIMEOUT is 300 seconds otherwise.

# Compiler and linker settings of everything that is ours. System headers do not see the warnings.
add_library(ddl_settings INTERFACE)
target_include_directories(ddl_settings INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(ddl_settings INTERFACE
  -Wall -Wextra -Wnon-virtual-dtor -Woverloaded-virtual
  # Never right, in any version of any compiler:
  -Werror=return-type -Werror=uninitialized -Werror=format -Werror=switch -Werror=unused-result -Werror=non-virtual-dtor
  $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety -Werror=thread-safety>
  $<$<BOOL:${DDL_WARNINGS_AS_ERRORS}>:-Werror>)
target_link_libraries(ddl_settings INTERFACE Threads::Threads)

# Sanitizers are for the whole build: a program whose parts disagree about them reports nonsense.
if(DDL_SANITIZE)
  add_compile_options(-fsanitize=${DDL_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${DDL_SANITIZE})
endif()

macro(ddl_parse_arguments function name options one_value multi_value)
  cmake_parse_arguments(arg "${options}" "${one_value}" "${multi_value}" ${ARGN})
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "${function}(${name}): unknown arguments: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT arg_SOURCES)
    message(FATAL_ERROR "${function}(${name}): no SOURCES")
  endif()
endmacro()

# For scripts/include_graph.py: a target's sources, from the project's root, and what it links.
function(ddl_record_target name sources depends)
  foreach(source ${sources})
    file(REAL_PATH ${source} source BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
    file(RELATIVE_PATH source ${PROJECT_SOURCE_DIR} ${source})
    set_property(GLOBAL APPEND_STRING PROPERTY DDL_TARGETS "${name}\tsource\t${source}\n")
  endforeach()
  foreach(depend ${depends})
    set_property(GLOBAL APPEND_STRING PROPERTY DDL_TARGETS "${name}\tlink\t${depend}\n")
  endforeach()
endfunction()

# Once everything is declared.
function(ddl_write_targets)
  get_property(targets GLOBAL PROPERTY DDL_TARGETS)
  file(WRITE ${PROJECT_BINARY_DIR}/targets.tsv "${targets}")
endfunction()

function(ddl_library name)
  ddl_parse_arguments(ddl_library ${name} "" "" "SOURCES;DEPENDS" ${ARGN})
  ddl_record_target(${name} "${arg_SOURCES}" "${arg_DEPENDS}")
  set(compiled ${arg_SOURCES})
  list(FILTER compiled INCLUDE REGEX "\\.(cc|cu)$")
  if(compiled)
    add_library(${name} STATIC ${arg_SOURCES})
    target_link_libraries(${name} PRIVATE ddl_settings PUBLIC ${arg_DEPENDS})
  else()
    add_library(${name} INTERFACE)
    target_link_libraries(${name} INTERFACE ${arg_DEPENDS})
  endif()
endfunction()

function(ddl_executable name)
  ddl_parse_arguments(ddl_executable ${name} "" "" "SOURCES;DEPENDS" ${ARGN})
  ddl_record_target(${name} "${arg_SOURCES}" "${arg_DEPENDS}")
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ddl_settings ${arg_DEPENDS})
  # Runs from any directory with an empty environment: LibTorch's folders are in the program (from the build tree), or ../lib
  # is (installed).
  set_target_properties(${name} PROPERTIES
    BUILD_RPATH "${DDL_LIBTORCH_LIB_DIR};${DDL_CUDA_LIB_DIR}"
    INSTALL_RPATH "$ORIGIN/../lib")
endfunction()

# Test programs leave their results here (JUnit XML); scripts/run_tests.sh reads from them which tests were skipped, and why.
set(DDL_TEST_RESULTS ${PROJECT_BINARY_DIR}/test-results)

function(ddl_set_test_properties name)
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  if(DDL_SANITIZE)  # runs several times slower
    math(EXPR arg_TIMEOUT "${arg_TIMEOUT} * 5")
  endif()
  set_tests_properties(${name} PROPERTIES
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
    TIMEOUT ${arg_TIMEOUT}
    LABELS "${arg_LABELS}"
    RUN_SERIAL "${arg_SERIAL}"
    SKIP_RETURN_CODE 77)
endfunction()

if(DDL_BUILD_TESTS)
  add_library(ddl_test_main STATIC ${PROJECT_SOURCE_DIR}/tests/test_main.cc)
  target_link_libraries(ddl_test_main PRIVATE ddl_settings PUBLIC GTest::gmock)
endif()

function(ddl_test name)
  if(NOT DDL_BUILD_TESTS)
    return()
  endif()
  ddl_parse_arguments(ddl_test ${name} "SERIAL" "TIMEOUT" "SOURCES;DEPENDS;LABELS" ${ARGN})
  ddl_executable(${name} SOURCES ${arg_SOURCES} DEPENDS ${arg_DEPENDS} ddl_test_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name} --gtest_output=xml:${DDL_TEST_RESULTS}/${name}.xml)
  ddl_set_test_properties(${name})
  # Threads that wait sleep: spinning, they would hold up the tests that run beside them.
  set_tests_properties(${name} PROPERTIES ENVIRONMENT "OMP_WAIT_POLICY=passive")
endfunction()

# Runs files of Python tests under pytest in the project's .venv, with the programs' folder in the environment (DDL_BUILD_DIR).
function(ddl_python_test name)
  if(NOT DDL_BUILD_TESTS)
    return()
  endif()
  ddl_parse_arguments(ddl_python_test ${name} "SERIAL" "TIMEOUT" "SOURCES;LABELS" ${ARGN})
  list(TRANSFORM arg_SOURCES PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
  # pytest answers 5 when it found no test: ctest takes that for the failure that it is.
  add_test(NAME ${name} COMMAND ${PROJECT_SOURCE_DIR}/.venv/bin/python -m pytest -q -rs -p no:cacheprovider
                                --junitxml=${DDL_TEST_RESULTS}/${name}.xml ${arg_SOURCES})
  ddl_set_test_properties(${name})
  set_tests_properties(${name} PROPERTIES ENVIRONMENT "DDL_BUILD_DIR=${PROJECT_BINARY_DIR};PYTHONDONTWRITEBYTECODE=1")
endfunction()
