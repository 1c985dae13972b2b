#include "tests/model/kernels/naive_kernels.h"

#include <algorithm>
#include <cmath>

#include "gtest/gtest.h"

namespace ddl::kernels {
namespace {

double Activate(Activation activation, double z) {
  switch (activation) {
    case Activation::kSilu:
      return z * Sigmoid(z);
    case Activation::kRelu:
      return std::max(z, 0.0);
    case Activation::kElu1:
      return z > 0 ? z + 1.0 : std::exp(z);
    case Activation::kIdentity:
      break;
  }
  return z;
}

void Rotate(const AttentionInputArgs& args, int64_t position, std::vector<double>& z) {
  const int64_t half = args.rotary_dims / 2;
  for (int64_t n = 0; n < half; ++n) {
    const double cosine = args.rope_cos[position * half + n];
    const double sine = args.rope_sin[position * half + n];
    const double a = z[n], b = z[half + n];
    z[n] = a * cosine - b * sine;
    z[half + n] = b * cosine + a * sine;
  }
}

// Nothing without a weight.
void Normalise(const float* weight, double eps, std::vector<double>& z) {
  if (weight == nullptr) return;
  double mean_square = eps;
  for (const double value : z) mean_square += value * value / static_cast<double>(z.size());
  for (size_t n = 0; n < z.size(); ++n) z[n] *= weight[n] / std::sqrt(mean_square);
}

// Of one head: what it was at this position mixed with what it was at the one before. `c` [d].
std::vector<double> Shifted(const AttentionInputArgs& args, const Shift& shift, int64_t head,
                            const float* c, const std::vector<float>& now,
                            const std::vector<float>& before) {
  double alpha = 0.0;
  if (shift.weight != nullptr) {
    for (int64_t i = 0; i < args.d; ++i) alpha += shift.weight[head * args.d + i] * c[i];
    alpha = Sigmoid(alpha);
  }
  std::vector<double> z(args.head_dim);
  for (int64_t n = 0; n < args.head_dim; ++n) {
    const double previous = before.empty() ? 0.0 : before[head * args.head_dim + n];
    z[n] = alpha * previous + (1.0 - alpha) * now[head * args.head_dim + n];
  }
  return z;
}

}  // namespace

RewrittenState NaiveRewrite(const DeltaStepArgs& args, const DeltaStepInput& before) {
  const int64_t d = args.d, dv = args.dv, tokens = std::ssize(before.beta);
  RewrittenState after = {.x = {before.x.begin(), before.x.end()},
                          .update_ratio = std::vector<double>(tokens, -1.0)};
  if (args.rewrite == Rewrite::kNone) return after;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* h = before.h.data() + t * d;
    double norm_squared = double(args.k_eps) * args.k_eps;
    for (int64_t i = 0; i < d; ++i) norm_squared += double(h[i]) * h[i];
    for (int64_t j = 0; j < dv; ++j) {
      double projection = 0.0;
      for (int64_t i = 0; i < d; ++i) {
        projection += h[i] / std::sqrt(norm_squared) * before.x[(t * d + i) * dv + j];
      }
      for (int64_t i = 0; i < d; ++i) {
        const double k = h[i] / std::sqrt(norm_squared);
        after.x[(t * d + i) * dv + j] +=
            args.residual_multiplier *
            (args.rewrite == Rewrite::kAdd
                 ? h[i]
                 : before.beta[t] * k * (before.v[t * dv + j] - projection));
      }
    }
    if (args.rewrite != Rewrite::kDelta) continue;
    double change = 0.0, size = 0.0;
    for (int64_t n = t * d * dv; n < (t + 1) * d * dv; ++n) {
      change += (after.x[n] - before.x[n]) * (after.x[n] - before.x[n]);
      size += double(before.x[n]) * before.x[n];
    }
    after.update_ratio[t] = size == 0.0 ? 0.0 : std::sqrt(change / size);
  }
  return after;
}

StateRead NaiveRead(const RaggedBatch& ragged, const DeltaStepArgs& args,
                    const DeltaStepInput& before, const std::vector<float>& stored) {
  const int64_t d = args.d, dv = args.dv, taps = std::max<int64_t>(args.taps, 1);
  const int64_t tokens = ragged.batch.tokens;
  const GateWeights& gate = args.gate;
  StateRead read = {.x_in = std::vector<double>(tokens * d),
                    .c = std::vector<double>(tokens * d),
                    .v = std::vector<double>(tokens * dv),
                    .beta = std::vector<double>(tokens),
                    .tail = {before.tail.begin(), before.tail.end()}};
  const auto tap = [&](int64_t r, int64_t source, int64_t i) {
    double sum = 0.0;
    for (int64_t j = 0; j < dv; ++j) {
      sum += double(args.compress_weight[(r * d + i) * dv + j]) * stored[(source * d + i) * dv + j];
    }
    return sum;
  };
  // What the rows before the chunk have left of output `n` after its last.
  const auto carried = [&](int64_t s, int64_t n, int64_t i) {
    if (ragged.position[ragged.row_begin[s]] == 0 || n + 1 >= taps) return 0.0;
    const int64_t slot = ragged.tail_source.empty() ? ragged.slot[s] : ragged.tail_source[s];
    return double(before.tail[(slot * taps + n) * d + i]);
  };
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t s = ragged.row_sequence[t], first = ragged.row_begin[s];
    double mean_square = 0.0;
    for (int64_t i = 0; i < d; ++i) {
      double sum = 0.0;
      if (args.compress == Compress::kIdentity) sum = stored[t * d + i];
      if (args.compress == Compress::kChannel) sum = tap(0, t, i);
      if (args.compress == Compress::kToken) {
        sum = carried(s, t - first, i);
        for (int64_t r = 0; r < taps; ++r) {
          const int64_t source = t - (taps - 1) + r;
          if (source >= first) sum += tap(r, source, i);
        }
      }
      read.x_in[t * d + i] = sum;
      mean_square += sum * sum / static_cast<double>(d);
    }
    const double* x_in = read.x_in.data() + t * d;
    double* c = read.c.data() + t * d;
    for (int64_t i = 0; i < d; ++i) {
      c[i] = args.norm_weight[i] * x_in[i] / std::sqrt(mean_square + args.norm_eps);
    }
    double logit = gate.beta_bias;
    if (gate.beta_in != nullptr) {
      for (int64_t n = 0; n < gate.beta_hidden; ++n) {
        double hidden = 0.0;
        for (int64_t i = 0; i < d; ++i) hidden += gate.beta_in[n * d + i] * c[i];
        logit += gate.beta_weight[n] * std::tanh(hidden);
      }
    } else {
      for (int64_t i = 0; i < d; ++i) logit += gate.beta_weight[i] * c[i];
    }
    read.beta[t] = 2.0 * Sigmoid(logit);
    for (int64_t j = 0; j < dv; ++j) {
      double& v = read.v[t * dv + j];
      v = gate.v_constant;
      if (gate.v_weight == nullptr) continue;
      v = gate.v_bias[j];
      for (int64_t i = 0; i < d; ++i) v += gate.v_weight[j * d + i] * x_in[i];
      if (gate.v_sigmoid) v = gate.v_scale * Sigmoid(v);
    }
  }
  // In the batch's slots what its rows leave, all others as they were.
  const auto leave = [&](int64_t s, int64_t end, int64_t slot) {
    const int64_t first = ragged.row_begin[s];
    for (int64_t n = 0; n + 1 < taps; ++n) {
      for (int64_t i = 0; i < d; ++i) {
        double sum = carried(s, n + end - first, i);
        for (int64_t source = first; source < end; ++source) {
          const int64_t r = taps - 1 - (end + n - source);
          if (r >= 0) sum += tap(r, source, i);
        }
        read.tail[(slot * taps + n) * d + i] = sum;
      }
    }
  };
  for (int64_t s = 0; s < ragged.batch.sequences && args.compress == Compress::kToken; ++s) {
    leave(s, ragged.row_begin[s + 1], ragged.slot[s]);
    for (int64_t t = ragged.row_begin[s]; t < ragged.row_begin[s + 1]; ++t) {
      if (!ragged.row_save.empty() && ragged.row_save[t] >= 0) leave(s, t + 1, ragged.row_save[t]);
    }
  }
  return read;
}

NaiveAttention::NaiveAttention(int64_t sequences) : sequences_(sequences) {}

NaiveAttention::Result NaiveAttention::Next(
    const RaggedBatch& ragged, const AttentionInputArgs& input, const PagedAttentionArgs& attention,
    const std::vector<float>& qkv, const std::vector<float>& c, const std::vector<float>& gate) {
  const int64_t heads = input.heads, hd = input.head_dim;
  const auto append = [](std::vector<double>& to, const std::vector<double>& values) {
    to.insert(to.end(), values.begin(), values.end());
  };
  const auto round = [&](std::vector<double>& z) {
    for (double& value : z) value = Round(static_cast<float>(value), input.type);
  };
  Result result;
  for (int64_t t = 0; t < ragged.batch.tokens; ++t) {
    Sequence& sequence = sequences_[ragged.row_sequence[t]];
    const int64_t position = ragged.position[t];
    const auto raw = [&](int64_t which) {
      const auto begin = qkv.begin() + (t * 3 + which) * heads * hd;
      return std::vector<float>(begin, begin + heads * hd);
    };
    const std::vector<float> q_now = raw(0), k_now = raw(1), v_now = raw(2);
    for (int64_t head = 0; head < heads; ++head) {
      const float* const c_now = c.data() + t * input.d;
      std::vector<double> q(q_now.begin() + head * hd, q_now.begin() + (head + 1) * hd);
      std::vector<double> k = Shifted(input, input.k_shift, head, c_now, k_now, sequence.last_k);
      std::vector<double> v = Shifted(input, input.v_shift, head, c_now, v_now, sequence.last_v);
      for (int64_t n = 0; n < hd; ++n) {
        q[n] = Activate(input.q_activation, q[n]);
        k[n] = Activate(input.k_activation, k[n]);
        v[n] = Activate(input.v_activation, v[n]);
      }
      Rotate(input, position, q);
      Rotate(input, position, k);
      Normalise(input.q_norm, input.norm_eps, q);
      Normalise(input.k_norm, input.norm_eps, k);
      append(result.q, q);
      append(result.k, k);
      append(result.v, v);
      round(q);
      round(k);
      round(v);
      sequence.keys.push_back(k);
      sequence.values.push_back(v);

      std::vector<double> scores(position + 1), out(hd, 0.0);
      double total = 0.0, largest = -INFINITY;
      for (int64_t p = 0; p <= position; ++p) {
        for (int64_t n = 0; n < hd; ++n) scores[p] += q[n] * sequence.keys[p * heads + head][n];
        scores[p] /= std::sqrt(static_cast<double>(hd));
        largest = std::max(largest, scores[p]);
      }
      for (double& score : scores) total += score = std::exp(score - largest);
      for (int64_t p = 0; p <= position; ++p) {
        for (int64_t n = 0; n < hd; ++n) {
          out[n] += scores[p] / total * sequence.values[p * heads + head][n];
        }
      }
      Normalise(attention.norm_weight, attention.norm_eps, out);
      for (int64_t n = 0; n < hd; ++n) {
        const double g = gate[(t * heads + head) * hd + n];
        if (attention.gate != nullptr) out[n] *= g * Sigmoid(g);
      }
      append(result.y, out);
    }
    sequence.last_k = k_now;
    sequence.last_v = v_now;
  }
  return result;
}

void ExpectCloseAttention(const std::vector<float>& found, const std::vector<double>& want,
                          Type type, const std::string& what) {
  ASSERT_EQ(found.size(), want.size()) << what;
  const double tolerance = type == Type::kFloat32 ? 3e-5 : 3e-2;
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_NEAR(found[i], want[i], tolerance * (1.0 + std::abs(want[i])))
        << what << ", element " << i;
  }
}

}  // namespace ddl::kernels
