#include "server/net/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string>

namespace ddl {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

// The whole answer to a request, read until the server closes.
std::string Ask(int port, const std::string& request) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t size; (size = read(fd, buffer, sizeof buffer)) > 0;) answer.append(buffer, size);
  close(fd);
  return answer;
}

TEST(HttpServerTest, AnswersItsPagesAndNoOthers) {
  std::atomic<bool> ready = false;
  const auto server = HttpServer::Start(
      "127.0.0.1:0", {{"/readyz",
                       [&] {
                         return ready ? HttpServer::Page{.body = "ready\n"}
                                      : HttpServer::Page{.code = 503, .body = "loading\n"};
                       }},
                      {"/metrics", [] {
                         return HttpServer::Page{.content_type = "text/plain; version=0.0.4",
                                                 .body = std::string(100'000, 'm') + "\n"};
                       }}});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto ask = [&](const std::string& line) {
    return Ask((*server)->port(), line + " HTTP/1.1\r\nHost: localhost\r\n\r\n");
  };
  EXPECT_THAT(ask("GET /readyz"), AllOf(StartsWith("HTTP/1.1 503 Service Unavailable\r\n"),
                                        EndsWith("\r\n\r\nloading\n")));
  ready = true;
  EXPECT_THAT(ask("GET /readyz"),
              AllOf(StartsWith("HTTP/1.1 200 OK\r\n"), EndsWith("\r\n\r\nready\n")));
  EXPECT_THAT(ask("GET /readyz?verbose"), StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(ask("HEAD /readyz"), AllOf(HasSubstr("Content-Length: 6\r\n"), EndsWith("\r\n\r\n")));
  const std::string metrics = ask("GET /metrics");
  EXPECT_THAT(metrics, HasSubstr("Content-Type: text/plain; version=0.0.4\r\n"));
  EXPECT_THAT(metrics, EndsWith(std::string(1000, 'm') + "\n"));
  EXPECT_EQ(metrics.size() - metrics.find("\r\n\r\n") - 4, 100'001u);
  for (const char* line : {"GET /", "GET /readyz/x", "GET /metricsx", "GET /../etc/passwd"}) {
    EXPECT_THAT(ask(line), StartsWith("HTTP/1.1 404 ")) << line;
  }
  for (const char* method : {"POST", "PUT", "DELETE", "PATCH", "OPTIONS"}) {
    EXPECT_THAT(ask(std::string(method) + " /readyz"), StartsWith("HTTP/1.1 405 ")) << method;
  }
}

TEST(HttpServerTest, SaysWhenItCannotListen) {
  const auto first = HttpServer::Start("127.0.0.1:0", {});
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string taken = "127.0.0.1:" + std::to_string((*first)->port());
  for (const std::string& address : {taken, std::string("192.0.2.1:80"), std::string("nowhere")}) {
    const auto second = HttpServer::Start(address, {});
    ASSERT_FALSE(second.ok()) << address;
    EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(second.status().message()), HasSubstr(address));
  }
}

}  // namespace
}  // namespace ddl
