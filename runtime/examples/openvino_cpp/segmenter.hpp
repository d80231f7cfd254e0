// A deployed OpenVINO model: frame in, instances out.
#pragma once

#include <openvino/openvino.hpp>

#include <array>
#include <stdexcept>
#include <string>

#include "../common/pipeline.h"

inline void check(const char *reason) {
    if (reason != nullptr) {
        throw std::runtime_error(reason);
    }
}

// One per thread: its buffers hold the last answer.
class Segmenter {
  public:
    // `xml` with its .bin beside it; 0 threads leave the number to OpenVINO.
    explicit Segmenter(const std::string &xml, int threads = 0) {
        ov::Core core;
        const auto model = core.read_model(xml);
        if (!model->has_rt_info({"boxseg"})) {
            throw std::runtime_error(xml + " was not exported by boxseg: it has no metadata");
        }
        const std::string json = model->get_rt_info<ov::Any>("boxseg").as<std::string>();
        try {
            check(pipeline_open(&around_, json.data(), json.size()));
            // by default CPUs with bf16 units would compute all that is not int8 in 16 bits, also
            // what export keeps in fp32
            ov::AnyMap settings = {
                ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                ov::hint::execution_mode(ov::hint::ExecutionMode::ACCURACY),
            };
            if (around_.metadata.precision == BXS_PRECISION_FP32) {
                settings.insert(ov::hint::inference_precision(ov::element::f32));
            }
            if (threads > 0) {
                settings.insert(ov::inference_num_threads(threads));
            }
            request_ = core.compile_model(model, "CPU", settings).create_infer_request();
        } catch (...) {
            pipeline_close(&around_);
            throw;
        }
    }

    ~Segmenter() {
        pipeline_close(&around_);
    }
    Segmenter(const Segmenter &) = delete;
    Segmenter &operator=(const Segmenter &) = delete;

    // The instances lie in answer() until the next call.
    void operator()(const bxs_frame &frame, double confidence,
                    const bxs_deadline *deadline = nullptr) {
        check(pipeline_letterbox(&around_, &frame));
        const ov::Shape shape = {1, around_.map.height, around_.map.width, 3};
        request_.set_input_tensor(ov::Tensor(ov::element::u8, shape, around_.input));
        request_.infer();
        std::array<const void *, MOST_OUTPUTS> outputs;
        for (int i = 0; i < around_.outputs; i++) {
            const ov::Tensor values = request_.get_tensor(around_.output_names[i]);
            if (values.get_size() != pipeline_output_size(&around_, i)) {
                throw std::runtime_error(std::string("the metadata do not fit the output ") +
                                         around_.output_names[i]);
            }
            if (pipeline_output_is_integer(&around_, i)) { // both check the type
                outputs[i] = values.data<const int32_t>();
            } else {
                outputs[i] = values.data<const float>();
            }
        }
        check(pipeline_answer(&around_, outputs.data(), confidence, deadline));
    }

    const pipeline &answer() const {
        return around_;
    }

  private:
    pipeline around_;
    ov::InferRequest request_;
};
