// What no emulation shows: a step that is captured in a CUDA graph and replayed, and steps on
// streams of their own. On a device only. If these fail, a captured training loop trains otherwise
// than the same loop without a graph.
#include "subject.h"

namespace flashoptim::cuda {

namespace {

class Stream {
public:
    Stream() { DeviceCopy::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
    ~Stream() { (void)cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    [[nodiscard]] cudaStream_t get() const { return stream_; }
    void wait() const { DeviceCopy::check(cudaStreamSynchronize(stream_)); }

private:
    cudaStream_t stream_ = nullptr;
};

/// What `body` enqueues on a stream, to be run at each replay.
class Graph {
public:
    template <class Body>
    Graph(const Stream& stream, Body body) {
        cudaGraph_t graph = nullptr;
        DeviceCopy::check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
        body();
        DeviceCopy::check(cudaStreamEndCapture(stream.get(), &graph));
        const auto status = cudaGraphInstantiateWithFlags(&replayed_, graph, 0);
        (void)cudaGraphDestroy(graph);
        DeviceCopy::check(status);
    }
    ~Graph() { (void)cudaGraphExecDestroy(replayed_); }
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    void replay(const Stream& stream) const { DeviceCopy::check(cudaGraphLaunch(replayed_, stream.get())); }

private:
    cudaGraphExec_t replayed_ = nullptr;
};

/// Step counts and learning rate where a graph reads them.
struct DeviceCounts {
    DeviceCopy steps{8}, rate{8};

    DeviceCounts() { set(0, 0.02); }
    void set(std::int64_t count, double learning_rate) {
        steps.upload(&count);
        rate.upload(&learning_rate);
    }
    [[nodiscard]] StepOptions options(NonFinite nonfinite = NonFinite::kSkipElement) const {
        StepOptions options{nonfinite, {}};
        options.device.steps_done = steps.as<std::int64_t>();
        options.device.learning_rate = rate.as<double>();
        return options;
    }
    [[nodiscard]] std::int64_t count() const {
        std::int64_t value = 0;
        steps.download(&value);
        return value;
    }
};

class CudaStreams : public OnDevice {};

}  // namespace

// Gradients, learning rate and step count change between the replays, other lists are stepped in
// between, and a bad step is skipped.
TEST_F(CudaStreams, AReplayedGraphStepsAsTheCpuDoes) {
    for (const auto& rule : rule_cases()) {
        auto expected = two_tensors(rule), found = two_tensors(rule), other = two_tensors(rule);
        found.fill_gradients(1);
        other.fill_gradients(1);
        DeviceSet on(found), on_other(other);
        for (auto& item : on.items) item.step = 1;
        DeviceCounts counts;
        const auto options = counts.options(NonFinite::kSkipStep);
        StepPlan plan;
        const Stream stream;
        const Graph graph(stream, [&] { plan.step(on.items, options, stream.get()); });
        ThreadPool pool(1);
        std::int64_t done = 0;
        for (int t = 1; t <= 5; ++t) {
            const bool is_bad = t == 2 || t == 3;  // fill_gradients makes these so
            expected.fill_gradients(t);
            found.fill_gradients(t);
            for (auto& item : expected.items()) {
                item.step = done + 1;
                item.has_momentum = done > 0;
                item.hyperparameters.learning_rate = 0.02 * t;
            }
            on.upload();
            counts.set(done, 0.02 * t);
            graph.replay(stream);
            EXPECT_EQ(plan.was_skipped(stream.get()), is_bad) << rule.name << ", replay " << t;
            if (!is_bad) {
                step(expected.items(), pool, Backend::kScalar);
                ++done;
            }
            EXPECT_EQ(counts.count(), done);
            on.download();
            ASSERT_TRUE(expected.same_as(found)) << rule.name << ", replay " << t;
            plan.step(on_other.items, {}, stream.get());
            stream.wait();
        }
    }
}

// The norm and what clips by it, in the same graph as the step.
TEST_F(CudaStreams, AGraphClipsByTheNorm) {
    auto expected = two_tensors(), found = two_tensors();
    DeviceSet on(found);
    DeviceCopy norm(8), coefficient(4);
    StepPlan plan;
    const Stream stream;
    constexpr double kMaxNorm = 0.5;
    StepOptions options;
    options.device.clip_coefficient = coefficient.as<float>();
    const Graph graph(stream, [&] {
        plan.grad_norm(on.items, {}, norm.as<double>(), kMaxNorm, coefficient.as<float>(), stream.get());
        plan.step(on.items, options, stream.get());
    });
    expected.fill_gradients(1);
    found.fill_gradients(1);
    on.upload();
    graph.replay(stream);
    stream.wait();
    double taken = 0.0;
    norm.download(&taken);
    ThreadPool pool(1);
    EXPECT_EQ(taken, grad_norm(expected.items(), pool));
    for (auto& item : expected.items()) {
        item.gradient_factor = static_cast<float>(std::min(1.0, kMaxNorm / (taken + 1e-6)));
    }
    step(expected.items(), pool, Backend::kScalar);
    on.download();
    EXPECT_TRUE(expected.same_as(found));
}

// Two plans on two streams at a time, and one plan that goes from stream to stream.
TEST_F(CudaStreams, TwoStreams) {
    const std::vector<TensorCase> cases = {{{331, 1001}}, {{40001}}, {{64, 8}}};
    const StorageCase storage{"native", {Format::kNative, 24, true, 0, 0}, DType::kBFloat16};
    const auto make = [&](int rule) {
        return TensorSet(rule_cases()[static_cast<std::size_t>(rule)], storage, DType::kBFloat16, cases);
    };
    TensorSet expected[] = {make(4), make(5)}, found[] = {make(4), make(5)};
    for (auto* sets : {expected, found}) {
        for (int n = 0; n < 2; ++n) sets[n].fill_gradients(1);
    }
    DeviceSet on[] = {DeviceSet(found[0]), DeviceSet(found[1])};
    const Stream streams[2];
    StepPlan plans[2];
    ThreadPool pool(1);
    for (int t = 1; t <= 6; ++t) {
        for (int n = 0; n < 2; ++n) {
            for (std::size_t i = 0; i < cases.size(); ++i) {
                expected[n].items()[i].step = on[n].items[i].step = t;
                expected[n].items()[i].has_momentum = on[n].items[i].has_momentum = t > 1;
            }
            step(expected[n].items(), pool, Backend::kScalar);
            plans[n].step(on[n].items, {}, streams[t <= 3 ? n : 1 - n].get());
        }
        if (t == 3) {
            for (const auto& stream : streams) stream.wait();  // what follows is on the other one
        }
    }
    for (int n = 0; n < 2; ++n) {
        streams[n].wait();
        on[n].download();
    }
    for (int n = 0; n < 2; ++n) EXPECT_TRUE(expected[n].same_as(found[n])) << "stream " << n;
}

}  // namespace flashoptim::cuda
