#include "server/engine/pooling.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"

namespace ddl {
namespace {

// Cuts and normalises one vector.
std::vector<float> Finish(absl::Span<const double> values, const PoolingParams& params) {
  const size_t wanted = params.dimensions > 0 ? params.dimensions : values.size();
  values = values.subspan(0, std::min(values.size(), wanted));
  double scale = 1.0;
  if (params.normalize) {
    double sum_of_squares = 0.0;
    for (const double value : values) sum_of_squares += value * value;
    if (sum_of_squares > 0.0) scale = 1.0 / std::sqrt(sum_of_squares);
  }
  std::vector<float> vector;
  vector.reserve(values.size());
  for (const double value : values) vector.push_back(static_cast<float>(value * scale));
  return vector;
}

}  // namespace

Pooler::Pooler(const PoolingParams& params, int64_t hidden_size)
    : params_(params), hidden_size_(hidden_size) {
  DDL_CHECK(hidden_size > 0, "vectors have at least one number");
}

Rows Pooler::RowsNeeded(bool last_chunk) const {
  if (params_.pooling != Pooling::kLastToken) return Rows::kAll;
  return last_chunk ? Rows::kLast : Rows::kNone;
}

void Pooler::Add(absl::Span<const float> rows) {
  DDL_CHECK(rows.size() % hidden_size_ == 0, "whole rows only");
  for (; !rows.empty(); rows.remove_prefix(hidden_size_)) {
    const absl::Span<const float> row = rows.subspan(0, hidden_size_);
    ++num_rows_;
    switch (params_.pooling) {
      case Pooling::kLastToken:
        pooled_.assign(row.begin(), row.end());
        break;
      case Pooling::kMean:
        pooled_.resize(hidden_size_, 0.0);
        for (int64_t i = 0; i < hidden_size_; ++i) pooled_[i] += row[i];
        break;
      case Pooling::kWeightedMean:
        pooled_.resize(hidden_size_, 0.0);
        for (int64_t i = 0; i < hidden_size_; ++i) {
          pooled_[i] += static_cast<double>(num_rows_) * row[i];
        }
        break;
      case Pooling::kMax:
        pooled_.resize(hidden_size_, -HUGE_VAL);
        for (int64_t i = 0; i < hidden_size_; ++i) {
          pooled_[i] = std::max<double>(pooled_[i], row[i]);
        }
        break;
      case Pooling::kNone:
        pooled_.assign(row.begin(), row.end());
        vectors_.push_back(Finish(pooled_, params_));
        break;
    }
  }
}

void Pooler::Reset() {
  num_rows_ = 0;
  pooled_.clear();
  vectors_.clear();
}

std::vector<std::vector<float>> Pooler::Take() {
  DDL_CHECK(num_rows_ > 0, "an input has at least one position");
  if (params_.pooling == Pooling::kNone) return std::move(vectors_);
  if (params_.pooling == Pooling::kMean) {
    for (double& value : pooled_) value /= static_cast<double>(num_rows_);
  } else if (params_.pooling == Pooling::kWeightedMean) {
    const double weights =
        0.5 * static_cast<double>(num_rows_) * static_cast<double>(num_rows_ + 1);
    for (double& value : pooled_) value /= weights;
  }
  return {Finish(pooled_, params_)};
}

}  // namespace ddl
