// Models of very many tensors. If these fail, an optimizer of 100,000 small tensors takes
// minutes instead of a second.
#include <sstream>

#include "optimizer_impl.h"
#include "support.h"

namespace flashoptim::libtorch {
namespace {

Tensors many(int count) {
    Tensors weights;
    for (int n = 0; n < count; ++n) weights.push_back(parameter(torch::ones({2}), torch::kBFloat16));
    return weights;
}

/// Looks at parameters that a call makes, for each of `count` parameters.
template <class Call>
double looks_per_parameter(FlashOptimizer& optimizer, int count, const Call& call) {
    auto& visits = OptimizerImpl::of(optimizer).visits;
    const auto before = visits;
    call();
    return static_cast<double>(visits - before) / count;
}

class ManyParameters : public testing::Test {
protected:
    static constexpr int kCount = 3000;
    /// A few passes over the parameters, and never one for each.
    static constexpr double kMost = 12.0;

    void expect_linear(const char* what, const std::function<void()>& call) {
        EXPECT_LE(looks_per_parameter(*optimizer, kCount, call), kMost) << what;
    }
    void SetUp() override {
        for (const auto& w : weights) w.mutable_grad() = torch::ones_like(w);
        optimizer->step();
    }

    Tensors weights = many(kCount);
    std::unique_ptr<FlashOptimizer> optimizer = std::make_unique<AdamW>(weights);
};

TEST_F(ManyParameters, AreLookedAtAFewTimesEach) {
    expect_linear("a step", [&] { optimizer->step(); });
    expect_linear("the norm", [&] { (void)optimizer->grad_norm(); });
    const auto each = [&](const auto& call) {
        return [&, call] {
            for (const auto& w : weights) call(w);
        };
    };
    expect_linear("masters", each([&](const auto& w) { (void)optimizer->master(w); }));
    expect_linear("states", each([&](const auto& w) { (void)optimizer->state_tensors(w); }));
    expect_linear("step counts", each([&](const auto& w) { (void)optimizer->step_count(w); }));
    expect_linear("bad elements", each([&](const auto& w) { (void)optimizer->bad_elements(w); }));
    expect_linear("momentum", each([&](const auto& w) { (void)optimizer->has_momentum(w); }));
    expect_linear("counts that are set", each([&](const auto& w) {
                      optimizer->set_step_count(w, 3);
                      optimizer->set_bad_elements(w, 1);
                      optimizer->set_has_momentum(w, true);
                  }));
    expect_linear("masters that are set",
                  each([&](const auto& w) { optimizer->set_master(w, torch::zeros({2})); }));
    expect_linear("gradients", each([&](const auto& w) { optimizer->set_gradient(w, w.grad()); }));
    expect_linear("refreshed masters", each([&](const auto& w) { optimizer->refresh_masters(w); }));
    expect_linear("loaded states", each([&](const auto& w) {
                      std::map<std::string, torch::Tensor> tensors;
                      for (const auto& [name, tensor] : optimizer->state_tensors(w))
                          tensors.emplace(name, tensor);
                      optimizer->load_state_tensors(w, tensors);
                  }));
}

TEST_F(ManyParameters, InAGroupEachAreLookedAtOnce) {
    AdamW grouped(Tensors{parameter(torch::ones({2}))});
    EXPECT_LE(looks_per_parameter(grouped, kCount,
                                  [&] {
                                      for (const auto& w : weights)
                                          grouped.add_param_group(torch::optim::OptimizerParamGroup({w}));
                                  }),
              kMost);
}

TEST_F(ManyParameters, WhoseMemoryMovesAreReleasedOneByOne) {
    optimizer->zero_grad();
    const GradientRelease release(*optimizer);
    expect_linear("released steps", [&] {
        for (auto w : weights) {
            w.set_data(w.detach().clone());
            w.sum().backward();
        }
    });
}

/// Torch looks for an entry of an archive among all that it has.
TEST_F(ManyParameters, MakeNoMoreEntriesInAnArchive) {
    const auto entries = [](const FlashOptimizer& of) {
        torch::serialize::OutputArchive out;
        of.save(out);
        std::stringstream stream;
        out.save_to(stream);
        torch::serialize::InputArchive in;
        in.load_from(stream);
        return in.keys().size();
    };
    const auto one = parameter(torch::ones({2}), torch::kBFloat16);
    AdamW small(Tensors{one});
    one.mutable_grad() = torch::ones_like(one);
    small.step();
    EXPECT_EQ(entries(*optimizer), entries(small));
    expect_linear("saving and loading", [&] {
        torch::serialize::OutputArchive out;
        optimizer->save(out);
        std::stringstream stream;
        out.save_to(stream);
        torch::serialize::InputArchive in;
        in.load_from(stream);
        optimizer->load(in);
    });
    EXPECT_EQ(optimizer->step_count(weights.back()), 1);
}

}  // namespace
}  // namespace flashoptim::libtorch
