// Memory that ends in the middle of a call, ours or a tensor's. If these fail, a run that could have gone on
// with a smaller batch goes on with weights, moments and counts that do not belong together.
#include <c10/core/Allocator.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <optional>
#include <sstream>

#include "failing_allocations.h"
#include "flashoptim/libtorch_checkpoint.h"
#include "support.h"

namespace flashoptim::libtorch {
namespace {

/// The allocator of tensors on the CPU, which has no memory where operator new has none.
class FailingTensors final : public c10::Allocator {
public:
    FailingTensors() : real_(c10::GetAllocator(c10::kCPU)) { c10::SetAllocator(c10::kCPU, this); }
    ~FailingTensors() override { c10::SetAllocator(c10::kCPU, real_); }
    FailingTensors(const FailingTensors&) = delete;
    FailingTensors& operator=(const FailingTensors&) = delete;

    c10::DataPtr allocate(std::size_t bytes) override {
        TORCH_CHECK(allocation_may_succeed(), "the tensors' allocator: not enough memory");
        return real_->allocate(bytes);
    }
    c10::DeleterFnPtr raw_deleter() const override { return real_->raw_deleter(); }
    void copy_data(void* to, const void* from, std::size_t bytes) const override {
        real_->copy_data(to, from, bytes);
    }

private:
    c10::Allocator* real_;
};

testing::AssertionResult is_error_of_torch_or_ours(const std::exception_ptr& error) {
    try {
        std::rethrow_exception(error);
    } catch (const c10::Error&) {
        return testing::AssertionSuccess();
    } catch (...) {
        return is_error_of_ours(error);
    }
}

/// A folder in memory, where there is one, that goes with this process.
class OwnFolder {
public:
    OwnFolder() {
        const std::filesystem::path memory = "/dev/shm";
        path_ = (std::filesystem::is_directory(memory) ? memory : std::filesystem::temp_directory_path()) /
                ("flashoptim-torch-memory-" + std::to_string(::getpid()));
    }
    ~OwnFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    OwnFolder(const OwnFolder&) = delete;
    OwnFolder& operator=(const OwnFolder&) = delete;
    std::filesystem::path operator/(const char* name) const { return path_ / name; }

private:
    std::filesystem::path path_;
};

/// An optimizer of two groups in the middle of its training.
struct Training {
    explicit Training(int steps = 2, NonFinite policy = NonFinite::kSkipElement, double momentum = 0.9)
        : weights{parameter(torch::ones({8, 9}), torch::kBFloat16),
                  parameter(torch::full({33}, 0.5), torch::kFloat16), parameter(torch::ones({3, 4}))},
          later(parameter(torch::full({4, 8}, 2.0), torch::kBFloat16)) {
        const auto options = SGDOptions(1e-3).momentum(momentum).nonfinite(policy).min_quantized_numel(0);
        optimizer = std::make_unique<SGD>(Tensors{weights[0]}, options);
        optimizer->add_param_group(torch::optim::OptimizerParamGroup({weights[1], weights[2]}));
        optimizer->set_threads(1);
        for (int n = 0; n < steps; ++n) step();
        set_gradients();
    }
    void set_gradients(double value = 0.01) const {
        for (const auto& w : all()) w.mutable_grad() = torch::full_like(w, value);
    }
    void step() {
        set_gradients();
        optimizer->step();
    }
    [[nodiscard]] Tensors all() const {
        auto listed = weights;
        if (optimizer->param_groups().size() == 3) listed.push_back(later);
        return listed;
    }
    SGDOptions& options() { return dynamic_cast<SGDOptions&>(optimizer->param_groups()[0].options()); }

    Tensors weights;
    torch::Tensor later;
    std::unique_ptr<FlashOptimizer> optimizer;
    std::optional<GradientRelease> release;
    std::shared_ptr<torch::serialize::OutputArchive> out;
    std::shared_ptr<torch::serialize::InputArchive> in;
};

struct Action {
    const char* name;
    std::function<void(Training&)> act;
    std::function<Training()> make = [] { return Training(); };
    std::function<void(Training&)> lost = [](Training&) {};  // what a failure may take
};

std::vector<Action> actions() {
    const auto step = [](Training& t) { t.optimizer->step(); };
    const auto with = [](auto change) {
        return [change] {
            Training t;
            change(t);
            return t;
        };
    };
    const auto bad_step = [](Training& t) {
        try {
            t.optimizer->step();
        } catch (const NonFiniteError&) {
            return;  // what the policy asks for
        }
    };
    const auto with_policy = [](NonFinite policy) {
        return [policy] {
            Training t(1, policy);
            t.set_gradients(std::numeric_limits<double>::infinity());
            return t;
        };
    };
    const auto archive = std::make_shared<std::string>(saved(*Training(5).optimizer));
    const auto folder = std::make_shared<const OwnFolder>();
    return {
        {"a step", step},
        {"the first step", step, [] { return Training(0); }},
        {"a step with a closure",
         [](Training& t) {
             t.optimizer->step([&] {
                 t.set_gradients();
                 return torch::zeros({});
             });
         }},
        {"the first step with momentum", step,
         [] {
             Training t(1, NonFinite::kSkipElement, 0.0);
             t.options().momentum(0.5);
             return t;
         }},
        {"the first step without momentum", step, with([](Training& t) { t.options().momentum(0.0); })},
        {"a step of a weight that was cast", step, with([](Training& t) {
             t.weights[0].set_data(t.weights[0].detach().to(torch::kFloat32));
             t.weights[1].set_data(t.weights[1].detach().to(torch::kBFloat16));
             t.set_gradients();
         })},
        {"a step of a weight in another memory order", step,
         with([](Training& t) { t.weights[0].set_data(t.weights[0].detach().t().contiguous().t()); })},
        {"a step of a weight in other memory", step, with([](Training& t) {
             for (auto& w : t.weights) w.set_data(w.detach().clone());
         })},
        {"a step of gradients in another order", step, with([](Training& t) {
             t.weights[0].mutable_grad() = torch::full({9, 8}, 0.01, torch::kBFloat16).t();
         })},
        {"a step that is skipped", bad_step, with_policy(NonFinite::kSkipStep)},
        {"a step that is an error", bad_step, with_policy(NonFinite::kError)},
        {"a step that found_inf keeps back", step,
         with([](Training& t) { t.optimizer->set_found_inf(torch::ones({})); })},
        {"a parameter exchanged in its group", step, with([](Training& t) {
             t.weights[2] = parameter(torch::full({3, 4}, 3.0));
             t.optimizer->param_groups()[1].params()[1] = t.weights[2];
             t.set_gradients();
         })},
        {"a group",
         [](Training& t) { t.optimizer->add_param_group(torch::optim::OptimizerParamGroup({t.later})); }},
        {"cleared gradients", [](Training& t) { t.optimizer->zero_grad(); }},
        {"a gradient that is set",
         [](Training& t) { t.optimizer->set_gradient(t.weights[0], torch::full({8, 9}, 0.5)); }},
        {"a loss scale", [](Training& t) { t.optimizer->set_grad_scale(torch::full({}, 4.0F)); }},
        {"the norm", [](Training& t) { (void)t.optimizer->grad_norm(); }},
        {"clipping", [](Training& t) { t.optimizer->clip_grad_norm(0.01); }},
        {"other threads",
         [](Training& t) {
             t.optimizer->set_threads(2);
             (void)t.optimizer->grad_norm();
         }},
        // Torch's writing and reading of files stand apart: they end the process where memory ends.
        {"saving", [](Training& t) { t.optimizer->save(*t.out); },
         with([](Training& t) { t.out = std::make_shared<torch::serialize::OutputArchive>(); })},
        {"loading", [](Training& t) { t.optimizer->load(*t.in); }, with([archive](Training& t) {
             std::istringstream stream(*archive);
             t.in = std::make_shared<torch::serialize::InputArchive>();
             t.in->load_from(stream);
         })},
        {"saving a folder",
         [folder](Training& t) { save_optimizer(*t.optimizer, ParameterNames(), *folder / "new"); }},
        {"loading a folder",
         [folder](Training& t) { load_optimizer(*t.optimizer, ParameterNames(), *folder / "old"); },
         with([folder](Training& t) { save_optimizer(*t.optimizer, ParameterNames(), *folder / "old"); })},
        {"masters", [](Training& t) { (void)t.optimizer->master(t.weights[0]); }},
        {"masters that are set",
         [](Training& t) { t.optimizer->set_master(t.weights[0], torch::full({8, 9}, 0.123)); }},
        {"the first masters that are set",
         [](Training& t) { t.optimizer->set_master(t.weights[1], torch::full({33}, 0.123)); },
         [] { return Training(0); }},
        {"masters of a weight that was cast",
         [](Training& t) { t.optimizer->set_master(t.weights[0], torch::full({8, 9}, 0.123)); },
         with([](Training& t) { t.weights[0].set_data(t.weights[0].detach().to(torch::kFloat16)); })},
        {"refreshed masters", [](Training& t) { t.optimizer->refresh_masters(); }},
        {"a state to be saved", [](Training& t) { (void)t.optimizer->state_tensors(t.weights[0]); }},
        {"a state of a weight that was cast",
         [](Training& t) { (void)t.optimizer->state_tensors(t.weights[0]); },
         with([](Training& t) { t.weights[0].set_data(t.weights[0].detach().to(torch::kFloat32)); })},
        {"a loaded state",
         [](Training& t) {
             std::map<std::string, torch::Tensor> tensors;
             for (const auto& [name, tensor] : t.optimizer->state_tensors(t.weights[0]))
                 tensors.emplace(name, torch::zeros_like(tensor));
             t.optimizer->load_state_tensors(t.weights[0], tensors);
         }},
        {"a state that is taken back",
         [](Training& t) { t.optimizer->load_state_tensors(t.weights[0], {}); }},
        {"counts", [](Training& t) { t.optimizer->set_step_count(t.weights[0], 0); },
         [] { return Training(0); }},
        {"reports",
         [](Training& t) {
             (void)t.optimizer->memory_report();
             (void)t.optimizer->bad_elements();
         }},
        {"a released step",
         [](Training& t) {
             const auto& w = t.weights[0];
             (*torch::autograd::impl::post_acc_grad_hooks(w))(w);
         },
         [] {
             Training t;
             t.optimizer->zero_grad();
             t.release.emplace(*t.optimizer);
             t.set_gradients();
             return t;
         },
         // The next backward() must not add to it.
         [](Training& t) { t.weights[0].mutable_grad().reset(); }},
        {"gradient release", [](Training& t) { t.release.emplace(*t.optimizer); },
         with([](Training& t) { t.optimizer->zero_grad(); })},
    };
}

/// Everything that a user can see of a training.
void expect_same(Training& a, Training& b) {
    for (auto* one : {&a, &b}) (void)one->optimizer->memory_report();  // a look at all groups
    ASSERT_EQ(a.optimizer->param_groups().size(), b.optimizer->param_groups().size());
    const auto of_a = a.all(), of_b = b.all();
    EXPECT_TRUE(same_everything(*a.optimizer, of_a, *b.optimizer, of_b));
    EXPECT_EQ(a.optimizer->state().size(), b.optimizer->state().size());
    EXPECT_EQ(a.optimizer->bad_elements(), b.optimizer->bad_elements());
    EXPECT_TRUE(saved(*a.optimizer) == saved(*b.optimizer)) << "archives differ";
    for (std::size_t n = 0; n < of_a.size(); ++n)
        EXPECT_EQ(of_a[n].grad().defined(), of_b[n].grad().defined());
}

void expect_same_course(Training& a, Training& b) {
    expect_same(a, b);
    a.release.reset();
    b.release.reset();
    for (auto* one : {&a, &b}) {
        try {
            one->optimizer->step();  // with the gradients, scales and clip coefficients that there are
        } catch (const NonFiniteError&) {
            continue;  // of the gradients that were bad before
        }
    }
    expect_same(a, b);
    a.step();
    b.step();
    expect_same(a, b);
}

class FailedAllocations : public testing::TestWithParam<Action> {
protected:
    FailingTensors tensors_;
};

TEST_P(FailedAllocations, ChangeNothing) {
    const auto& [name, act, make, lost] = GetParam();
    const auto failed = fail_each_allocation(
        make, act,
        [&](Training& t, const FailedAllocation& failure) {
            auto twin = make();
            failure.error ? lost(twin) : act(twin);
            expect_same_course(t, twin);
        },
        &is_error_of_torch_or_ours);
    RecordProperty("allocations", static_cast<int>(failed));
}

INSTANTIATE_TEST_SUITE_P(Of, FailedAllocations, testing::ValuesIn(actions()), [](const auto& one) {
    std::string name;
    for (const char c : std::string(one.param.name)) {
        if (std::isalnum(static_cast<unsigned char>(c)) != 0) name += c;
    }
    return name;
});

}  // namespace
}  // namespace flashoptim::libtorch
