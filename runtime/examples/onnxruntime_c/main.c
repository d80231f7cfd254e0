/* One image: onnxruntime_c MODEL.onnx IMAGE OVERLAY.png ANSWER.json [confidence, 0.5] */
#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../common/picture.h"
#include "../common/pipeline.h"

/* Everything that must be released at the end. */
typedef struct {
    const OrtApi *api;
    const char *model; /* its path */
    OrtEnv *environment;
    OrtSessionOptions *options;
    OrtSession *session;
    OrtMemoryInfo *memory;
    OrtValue *input;
    OrtValue *outputs[MOST_OUTPUTS];
    pipeline around;
    picture image;
} program;

static void stop(program *of, int code) {
    for (int i = 0; i < MOST_OUTPUTS; i++) {
        if (of->outputs[i] != NULL) {
            of->api->ReleaseValue(of->outputs[i]);
        }
    }
    if (of->input != NULL) {
        of->api->ReleaseValue(of->input);
    }
    if (of->memory != NULL) {
        of->api->ReleaseMemoryInfo(of->memory);
    }
    if (of->session != NULL) {
        of->api->ReleaseSession(of->session);
    }
    if (of->options != NULL) {
        of->api->ReleaseSessionOptions(of->options);
    }
    if (of->environment != NULL) {
        of->api->ReleaseEnv(of->environment);
    }
    pipeline_close(&of->around);
    picture_close(&of->image);
    exit(code);
}

/* Says in one line what is wrong with what; an engine's own words may have several. */
static void say(const char *what, const char *reason) {
    fprintf(stderr, "onnxruntime_c: %s: %.*s\n", what, (int)strcspn(reason, "\r\n"), reason);
}

static void check(program *of, const char *what, const char *reason) {
    if (reason != NULL) {
        say(what, reason);
        stop(of, 1);
    }
}

static void check_ort(program *of, OrtStatus *status) {
    if (status != NULL) {
        say(of->model, of->api->GetErrorMessage(status));
        of->api->ReleaseStatus(status);
        stop(of, 1);
    }
}

static void load(program *of) {
    const OrtApi *api = of->api;
    /* what goes wrong comes back as a status */
    check_ort(of, api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "boxseg", &of->environment));
    check_ort(of, api->CreateSessionOptions(&of->options));
    check_ort(of, api->CreateSession(of->environment, of->model, of->options, &of->session));
    check_ort(of, api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &of->memory));

    OrtModelMetadata *metadata = NULL;
    OrtAllocator *allocator = NULL; /* the default one is not released */
    char *json = NULL;
    check_ort(of, api->GetAllocatorWithDefaultOptions(&allocator));
    check_ort(of, api->SessionGetModelMetadata(of->session, &metadata));
    OrtStatus *status =
        api->ModelMetadataLookupCustomMetadataMap(metadata, allocator, "boxseg", &json);
    api->ReleaseModelMetadata(metadata);
    check_ort(of, status);
    check(of, of->model, json == NULL ? PIPELINE_FOREIGN : NULL);
    const char *reason = pipeline_open(&of->around, json, strlen(json));
    check_ort(of, api->AllocatorFree(allocator, json));
    check(of, of->model, reason);
}

static void run(program *of) {
    const OrtApi *api = of->api;
    pipeline *around = &of->around;
    const int64_t shape[4] = {1, around->map.height, around->map.width, 3};
    const size_t bytes = (size_t)around->map.height * around->map.width * 3;
    check_ort(of,
              api->CreateTensorWithDataAsOrtValue(of->memory, around->input, bytes, shape, 4,
                                                  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &of->input));
    OrtAllocator *allocator = NULL;
    char *name = NULL;
    check_ort(of, api->GetAllocatorWithDefaultOptions(&allocator));
    check_ort(of, api->SessionGetInputName(of->session, 0, allocator, &name));
    const char *const input_names[1] = {name};
    const OrtValue *const inputs[1] = {of->input};
    OrtStatus *status = api->Run(of->session, NULL, input_names, inputs, 1, around->output_names,
                                 (size_t)around->outputs, of->outputs);
    check_ort(of, api->AllocatorFree(allocator, name));
    check_ort(of, status);
}

static void answer(program *of, double confidence) {
    const OrtApi *api = of->api;
    const void *outputs[MOST_OUTPUTS];
    for (int i = 0; i < of->around.outputs; i++) {
        OrtTensorTypeAndShapeInfo *info = NULL;
        ONNXTensorElementDataType type;
        size_t size = 0;
        void *values = NULL;
        check_ort(of, api->GetTensorTypeAndShape(of->outputs[i], &info));
        OrtStatus *type_status = api->GetTensorElementType(info, &type);
        OrtStatus *size_status = api->GetTensorShapeElementCount(info, &size);
        api->ReleaseTensorTypeAndShapeInfo(info);
        check_ort(of, type_status);
        check_ort(of, size_status);
        const ONNXTensorElementDataType wanted = pipeline_output_is_integer(&of->around, i)
                                                     ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32
                                                     : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        int is_good = type == wanted && size == pipeline_output_size(&of->around, i);
        check(of, of->around.output_names[i], is_good ? NULL : PIPELINE_UNFIT);
        check_ort(of, api->GetTensorMutableData(of->outputs[i], &values));
        outputs[i] = values;
    }
    check(of, of->model, pipeline_answer(&of->around, outputs, confidence, NULL));
}

int main(int argc, char **argv) {
    if (argc < 5 || argc > 6) {
        fprintf(stderr, "usage: %s MODEL.onnx IMAGE OVERLAY.png ANSWER.json [0.5]\n", argv[0]);
        return 2;
    }
    double confidence = 0.5;
    const char *reason = argc == 6 ? pipeline_confidence(argv[5], &confidence) : NULL;
    if (reason != NULL) {
        say(argv[5], reason);
        return 2;
    }
    program of;
    memset(&of, 0, sizeof of);
    of.model = argv[1];
    of.api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    check(&of, "libonnxruntime",
          of.api == NULL ? "the library is older than the header; install one release" : NULL);
    check(&of, argv[2], picture_read(argv[2], &of.image));
    load(&of);
    bxs_frame frame = picture_frame(&of.image);
    check(&of, argv[2], pipeline_letterbox(&of.around, &frame));
    run(&of);
    answer(&of, confidence);
    check(&of, argv[2], picture_draw(&of.image, of.around.instances, of.around.n, of.around.text));
    check(&of, argv[3], picture_write_png(argv[3], &of.image));
    check(&of, argv[4], pipeline_write_json(&of.around, argv[4], argv[2]));
    printf("%zu instances\n", of.around.n);
    stop(&of, 0);
}
