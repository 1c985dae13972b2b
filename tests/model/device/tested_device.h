#ifndef DDL_TESTS_MODEL_DEVICE_TESTED_DEVICE_H_
#define DDL_TESTS_MODEL_DEVICE_TESTED_DEVICE_H_

#include "model/model_runner.h"

namespace ddl {

// Where model_runner_test computes: each program that it is built into links another definition.
RunnerDevice TestedDevice();
// Whether that is a GPU's twin on this processor, which is many thousand times as slow.
bool IsEmulated();

}  // namespace ddl

#endif  // DDL_TESTS_MODEL_DEVICE_TESTED_DEVICE_H_
