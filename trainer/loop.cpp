// The training loop. Never parses an argument and never prints.
#include "trainer/loop.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"
#include "trainer/data/file_list.h"
#include "trainer/data/sampler.h"
#include "trainer/environment.h"
#include "trainer/gradient_accumulator.h"
#include "trainer/hook_timer.h"
#include "trainer/memory_by_kind.h"
#include "trainer/memory_estimate.h"
#include "trainer/metrics.h"
#include "trainer/optimizers.h"
#include "trainer/process_memory.h"
#include "trainer/run_checkpoint.h"
#include "trainer/run_folder.h"
#include "trainer/stopwatch.h"
#include "trainer/summary.h"
#include "trainer/threads.h"
#include "trainer/torch_device.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;

std::optional<double> median(std::vector<double> values) {
    if (values.empty()) {
        return std::nullopt;
    }
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

constexpr std::int64_t kByteVocabulary = 256;

// A run ends behind so many lost steps in a row, in which at least half of the gradient was not finite and so
// did not train.
constexpr int kMostLostSteps = 3;
// From here on squares overflow, and every norm of the model is infinite. The loss can then be finite: that of
// a model without weights.
constexpr double kMostWeight = 0x1p64;

// The vocabulary size if the user gave none: 256 for text, the preset's for tokens. For tokens, a preset for
// bytes takes it from the data.
std::int64_t default_vocabulary(const TrainOptions& options) {
    const DataOptions& data = options.data;
    if (!is_token_data(data.path)) {
        return kByteVocabulary;
    }
    const std::int64_t own = llama_config(options.model).vocabulary_size;
    if (own != kByteVocabulary) {
        return own;
    }
    std::int64_t needed = smallest_vocabulary(data.path, data.raw);
    if (!data.validation_path.empty() && is_token_data(data.validation_path)) {
        needed = std::max(needed, smallest_vocabulary(data.validation_path, data.raw));
    }
    constexpr std::int64_t kMultiple = 64;  // as GPT-2's 50,257 are padded to 50,304
    return std::max(own, (needed + kMultiple - 1) / kMultiple * kMultiple);
}

// The options with the vocabulary size that follows from data and preset. Refuses options that cannot be run,
// as far as that does not depend on the content of the data.
TrainOptions resolve(TrainOptions options) {
    validate(options);
    check_environment(options.threads);
    for (const fs::path& data : {options.data.path, options.data.validation_path})
        require_apart(data, options.out);
    const bool tokens = is_token_data(options.data.path);
    if (!options.model.vocabulary_size) {
        options.model.vocabulary_size = default_vocabulary(options);
    }
    if (!tokens && *options.model.vocabulary_size < kByteVocabulary) {
        throw InvalidArgument("the vocabulary size is " + std::to_string(*options.model.vocabulary_size) +
                              ", and text has 256, one for each byte; give at least 256");
    }
    return options;
}

ModelBuild model_build(const TrainOptions& options) {
    return {precision_for(options.optimizer.format), options.activation_checkpointing, options.seed};
}

// The loss of one batch. On the CPU the tensors borrow the batch's memory during the forward pass only;
// backward has its own references to tensors.
torch::Tensor loss_of(Model& model, TokenBatch& batch, const torch::Device& device) {
    const std::vector<std::int64_t> shape = {batch.rows, batch.sequence};
    return model.forward(torch::from_blob(batch.inputs.data(), shape, torch::kInt64).to(device),
                         torch::from_blob(batch.targets.data(), shape, torch::kInt64).to(device));
}

// One run. Its members are in the order of their dependencies.
class Run {
public:
    Run(const TrainOptions& options, TrainObserver& observer)
        : options_(resolve(options)),
          observer_(observer),
          device_(find_device(options_.device)),
          threads_(set_threads(options_.threads)),
          data_(open_data(options_.data, *options_.model.vocabulary_size, options_.sequence_length)),
          fields_(run_fields(options_, data_.identity(), threads_.torch)) {
        require_memory(options_);
        require_open_files();
        const Notice notice = [this](const std::string& line) { observer_.on_notice(line); };
        if (!options_.out.empty()) folder_ = std::make_unique<RunFolder>(options_.out, notice);
        if (!options_.resume.empty()) resumed_from_ = find_checkpoint(options_.resume, notice);
        const std::int64_t last_step = options_.schedule.total_steps;
        if (folder_ != nullptr) folder_->require_permission(resumed_from_, last_step, options_.overwrite);
        model_ = make_model(options_.model, model_build(options_));
        model_->to(device_);
        parameters_ = model_->parameters();
        optimizer_ = make_optimizer(options_.optimizer, options_.schedule.peak, *model_);
        optimizer_->set_threads(threads_.optimizer);
        if (!resumed_from_.empty()) {
            step_ = load_run(resumed_from_, fields_, *model_, *optimizer_, notice);
            saved_step_ = step_;
        }
        bad_elements_ = optimizer_->bad_elements();
        if (options_.optimizer.gradient_release) {
            release_ = std::make_unique<libtorch::GradientRelease>(*optimizer_);
            if (device_.is_cpu()) release_timer_ = std::make_unique<HookTimer>(parameters_);
        } else if (options_.accumulation > 1) {
            accumulator_ = std::make_unique<GradientAccumulator>(parameters_);
        }
        if (folder_ != nullptr) {
            const bool continues = folder_->begin(resumed_from_, step_, last_step, options_.overwrite);
            metrics_ = std::make_unique<MetricsFile>(folder_->metrics(), folder_->metrics_so_far(),
                                                     continues ? step_ : 0, notice);
        }
    }

    TrainResult train() {
        observer_.on_start(info());
        if (step_ >= options_.schedule.total_steps) {
            observer_.on_notice("the run is complete: " + resumed_from_.string() + " is of step " +
                                std::to_string(step_) + " of " +
                                std::to_string(options_.schedule.total_steps) +
                                "; raise the number of steps to train on");
        }
        while (step_ < options_.schedule.total_steps && !result_.stopped) {
            StepRecord record = train_step();
            const bool last = step_ == options_.schedule.total_steps;
            if (std::isfinite(record.loss) && (last || step_ % options_.evaluation_interval == 0)) {
                evaluate_into(record);
            }
            record.resident_bytes = process_memory().resident;
            report(record);
            require_finite(record.loss, "loss");
            if (record.validation_loss) require_finite(*record.validation_loss, "validation loss");
            if (last) require_sound_weights();
            if (lost_steps_ >= kMostLostSteps || last) require_gradients();
            result_.stopped = observer_.stop_requested() && !last;
            const bool ends = last || result_.stopped;
            const bool due = options_.checkpoint_interval > 0 && step_ % options_.checkpoint_interval == 0;
            if (!options_.out.empty() && (due || (ends && options_.final_checkpoint))) {
                require_sound_model(record);
                save();
            }
        }
        return finish();
    }

private:
    RunInfo info() const {
        RunInfo info;
        for (const torch::Tensor& parameter : parameters_) {
            info.parameters += parameter.numel();
        }
        info.vocabulary_size = *options_.model.vocabulary_size;
        info.training_tokens = data_.training.size;
        info.validation_tokens = data_.validation.size;
        info.first_step = step_ + 1;
        info.total_steps = options_.schedule.total_steps;
        info.threads = threads_.torch;
        info.clip_norm = options_.clip_norm;
        info.resumed_from = resumed_from_;
        return info;
    }

    StepRecord train_step() {
        const Stopwatch whole;
        StepRecord record;
        record.learning_rate = options_.schedule.at(step_);
        set_learning_rate(*optimizer_, record.learning_rate);  // gradient release steps inside backward
        record.loss = forward_and_backward();
        if (std::isfinite(record.loss)) {
            update(record);
        }
        ++step_;

        const std::int64_t tokens = options_.batch_size * options_.accumulation * options_.sequence_length;
        record.step = step_;
        record.tokens = step_ * tokens;
        record.seconds = whole.seconds();
        record.tokens_per_second = static_cast<double>(tokens) / record.seconds;
        step_seconds_.push_back(record.seconds);
        if (record.optimizer_seconds) optimizer_seconds_.push_back(*record.optimizer_seconds);
        return record;
    }

    void update(StepRecord& record) {
        if (accumulator_ != nullptr) {
            for (std::size_t index = 0; index < parameters_.size(); ++index) {
                optimizer_->set_gradient(parameters_[index], accumulator_->sum(index));
            }
        }
        if (release_ == nullptr) {
            record.gradient_norm = clip();
            wait_for(device_);
            const Stopwatch alone;
            optimizer_->step();
            wait_for(device_);
            record.optimizer_seconds = alone.seconds();
        } else if (release_timer_ != nullptr) {
            record.optimizer_seconds = release_timer_->take_seconds();
        }
        count_lost();
        if (result_.memory.parameters == 0) {
            result_.memory = memory_by_kind(*model_, *optimizer_, accumulator_.get());
        }
        if (release_ == nullptr) {
            optimizer_->zero_grad();
        }
        if (accumulator_ != nullptr) {
            accumulator_->clear();
        }
    }

    void count_lost() {
        const std::int64_t before = std::exchange(bad_elements_, optimizer_->bad_elements());
        std::int64_t elements = 0;
        for (const torch::Tensor& parameter : parameters_) elements += parameter.numel();
        lost_steps_ = bad_elements_ - before >= (elements + 1) / 2 ? lost_steps_ + 1 : 0;
    }

    // Returns the mean loss of the micro-batches. Once the sum is not finite, no more backward passes are
    // run.
    double forward_and_backward() {
        const auto parts = static_cast<double>(options_.accumulation);
        const double factor = options_.loss_factor / parts;
        double loss_sum = 0.0;
        for (std::int64_t part = 0; part < options_.accumulation; ++part) {
            TokenBatch batch = read_batch(part);
            const torch::Tensor loss = loss_of(*model_, batch, device_);
            loss_sum += loss.item<double>();
            if (!std::isfinite(loss_sum)) {
                return std::isnan(loss_sum) ? std::numeric_limits<double>::quiet_NaN()
                                            : loss_sum;  // no "-nan"
            }
            (factor == 1.0 ? loss : loss * factor).backward();
        }
        return loss_sum / parts;
    }

    // If this fails, no step has begun, so the state of the last step is saved.
    TokenBatch read_batch(std::int64_t part) {
        try {
            return training_batch(data_.training, options_.seed, step_, part * options_.batch_size,
                                  options_.batch_size, options_.sequence_length);
        } catch (const Error&) {
            keep_state();
            throw;
        }
    }

    // The step has been made. So it is saved even if the validation data cannot be read any more.
    void evaluate_into(StepRecord& record) {
        try {
            record.validation_loss = evaluate();
        } catch (const Error&) {
            report(record);
            keep_state();
            throw;
        }
    }

    // Saves the state of a run that ends with an error in its data. A disk error must not hide that error.
    void keep_state() {
        if (options_.out.empty() || !options_.final_checkpoint || step_ == saved_step_) {
            return;
        }
        try {
            require_sound_weights();
            require_gradients();
            save();
        } catch (const Error& error) {
            observer_.on_notice(error.what());
        }
    }

    // Returns the norm before clipping.
    double clip() {
        return options_.clip_norm > 0.0 ? optimizer_->clip_grad_norm(options_.clip_norm).item<double>()
                                        : optimizer_->grad_norm();
    }

    double evaluate() {
        double sum = 0.0;
        for (std::int64_t index = 0; index < options_.evaluation_batches; ++index) {
            sum += validation_loss(index);
        }
        const double mean = sum / static_cast<double>(options_.evaluation_batches);
        return std::isnan(mean) ? std::numeric_limits<double>::quiet_NaN() : mean;
    }

    double validation_loss(std::int64_t index) {
        const torch::NoGradGuard no_grad;
        TokenBatch batch = validation_batch(data_.validation, index, options_.evaluation_batches,
                                            options_.batch_size, options_.sequence_length);
        return loss_of(*model_, batch, device_).item<double>();
    }

    // Never saves a broken model, because --keep-checkpoints would then delete the last good checkpoint.
    void require_sound_model(const StepRecord& record) {
        require_finite(record.validation_loss ? *record.validation_loss : validation_loss(0),
                       "validation loss");
        require_sound_weights();
        require_gradients();
    }

    void require_sound_weights() const {
        const torch::NoGradGuard no_grad;
        for (const torch::Tensor& parameter : parameters_) {
            // The largest magnitude is NaN or infinite where any weight is.
            const auto largest =
                at::linalg_vector_norm(parameter, std::numeric_limits<double>::infinity()).item<double>();
            require_finite(largest, "largest weight");
            if (largest >= kMostWeight) {
                throw_broken("the square of the largest weight of step " + std::to_string(step_) +
                             " is infinite");
            }
        }
    }

    void require_gradients() const {
        if (lost_steps_ > 0) {
            throw_broken("half of the gradient of step " + std::to_string(step_) + " is nan or infinite");
        }
    }

    void require_finite(double value, const char* what) const {
        if (std::isfinite(value)) {
            return;
        }
        throw_broken(std::string("the ") + what + " of step " + std::to_string(step_) + " is " +
                     (std::isnan(value) ? "nan" : "infinite"));
    }

    [[noreturn]] void throw_broken(const std::string& what) const {
        const std::string kept =
            result_.checkpoint.empty() ? resumed_from_.string() : result_.checkpoint.string();
        throw NonFiniteLoss(what + ", so the run has ended there; " +
                            (kept.empty() ? std::string("no checkpoint was written")
                                          : "the last good checkpoint is " + kept) +
                            ": train again with a lower learning rate, a longer warm-up or clipping");
    }

    void report(const StepRecord& record) {
        if (metrics_ != nullptr) {
            metrics_->append(record);
        }
        result_.loss = record.loss;
        result_.validation_loss = record.validation_loss;
        observer_.on_step(record);
    }

    void save() {
        metrics_->sync();
        folder_->begin_checkpoint(step_);
        const CheckpointRecord record =
            save_run(checkpoint_folder(options_.out, step_), step_, fields_, *model_, *optimizer_);
        folder_->end_checkpoint();
        if (options_.kept_checkpoints > 0) folder_->remove_old_checkpoints(options_.kept_checkpoints);
        saved_step_ = step_;
        result_.checkpoint = record.folder;
        result_.checkpoint_bytes = record.bytes;
        observer_.on_checkpoint(record);
    }

    TrainResult finish() {
        if (!result_.validation_loss) {
            result_.validation_loss = evaluate();
            require_finite(*result_.validation_loss, "validation loss");
        }
        if (result_.memory.parameters == 0) {  // resumed after its last step: there was no gradient
            result_.memory = memory_by_kind(*model_, *optimizer_, accumulator_.get());
        }
        result_.last_step = step_;
        result_.bad_elements = optimizer_->bad_elements();
        result_.step_seconds = median(step_seconds_);
        result_.optimizer_step_seconds = median(optimizer_seconds_);
        result_.peak_resident_bytes = process_memory().peak_resident;
        result_.peak_device_bytes = peak_tensor_bytes(device_);
        // The run was stopped before its first checkpoint and writes none. So the run that it replaces is
        // restored.
        result_.is_kept = folder_ != nullptr && !(result_.stopped && folder_->is_replacing());
        if (result_.is_kept) end_in_folder();
        return result_;
    }

    void end_in_folder() {
        metrics_->sync();
        // Deletes those, too, that a killed run could not delete any more.
        if (options_.kept_checkpoints > 0) folder_->remove_old_checkpoints(options_.kept_checkpoints);
        // A run that was complete before it was resumed has measured nothing. The summary of its training
        // stays.
        const fs::path summary = options_.out / kSummaryName;
        if (!step_seconds_.empty() || !fs::exists(summary)) {
            const FinishedRun finished{options_, result_};
            checkpoint::write_file(summary, summary_json({&finished, 1}));
        }
        folder_->end();
    }

    TrainOptions options_;
    TrainObserver& observer_;
    torch::Device device_;
    RunThreads threads_;
    DataSet data_;
    RunFields fields_;
    fs::path resumed_from_;
    std::shared_ptr<Model> model_;
    std::vector<torch::Tensor> parameters_;
    std::unique_ptr<libtorch::FlashOptimizer> optimizer_;
    std::unique_ptr<libtorch::GradientRelease> release_;
    std::unique_ptr<HookTimer> release_timer_;
    std::unique_ptr<GradientAccumulator> accumulator_;
    std::unique_ptr<RunFolder> folder_;
    std::unique_ptr<MetricsFile> metrics_;
    std::int64_t step_ = 0;          // steps done
    std::int64_t saved_step_ = 0;    // of the newest checkpoint
    std::int64_t bad_elements_ = 0;  // of all gradients until now
    int lost_steps_ = 0;             // in a row, until now
    std::vector<double> step_seconds_;
    std::vector<double> optimizer_seconds_;
    TrainResult result_;
};

}  // namespace

TrainResult train(const TrainOptions& options, TrainObserver& observer) {
    return Run(options, observer).train();
}

void check(const TrainOptions& requested) {
    const TrainOptions options = resolve(requested);
    static_cast<void>(find_device(options.device));
    static_cast<void>(open_data(options.data, *options.model.vocabulary_size, options.sequence_length));
    require_memory(options);
    require_open_files();
}

TrainResult hold_model(const TrainOptions& requested) {
    const TrainOptions options = resolve(requested);
    const torch::Device device = find_device(options.device);
    set_threads(options.threads);
    const DataSet data = open_data(options.data, *options.model.vocabulary_size, options.sequence_length);
    require_memory(options);
    const auto model = make_model(options.model, model_build(options));
    model->to(device);
    TokenBatch batch =
        training_batch(data.training, options.seed, 0, 0, options.batch_size, options.sequence_length);
    const torch::Tensor loss = loss_of(*model, batch, device);
    TrainResult result;
    result.loss = loss.item<double>();
    for (const torch::Tensor& parameter : model->parameters()) {
        result.memory.parameters += parameter.numel();
        result.memory.weights += static_cast<std::int64_t>(parameter.nbytes());
    }
    result.memory.autocast_copies = model->autocast_copy_bytes();
    result.peak_resident_bytes = process_memory().peak_resident;
    result.peak_device_bytes = peak_tensor_bytes(device);
    return result;
}

}  // namespace flashoptim::trainer
