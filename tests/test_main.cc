// The main function of every test program: GoogleTest's own, with one more exit status. A program
// that ran only tests that skipped themselves ends with kSkipped, which ctest shows as "Skipped"
// and not as "Passed".

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace {
constexpr int kSkipped = 77;  // also in cmake/Targets.cmake, as SKIP_RETURN_CODE
}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  if (const int failed = RUN_ALL_TESTS(); failed != 0) return failed;
  const testing::UnitTest& tests = *testing::UnitTest::GetInstance();
  const bool all_skipped =
      tests.skipped_test_count() > 0 && tests.skipped_test_count() == tests.test_to_run_count();
  return all_skipped ? kSkipped : 0;
}
