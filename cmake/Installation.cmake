# `cmake --install` gives a folder that runs wherever it is moved to: bin/ddl_server, lib/ with the LibTorch libraries that it
# needs (found through $ORIGIN/../lib), and share/ddl/models/ddl-demo. The Debian libraries (gRPC, protobuf, prometheus-cpp,
# PCRE2, spdlog) stay the system's.
if(TARGET ddl_server)
  install(TARGETS ddl_server RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
