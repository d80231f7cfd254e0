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

static void check(program *of, const char *reason) {
    if (reason != NULL) {
        fprintf(stderr, "onnxruntime_c: %s\n", reason);
        stop(of, 1);
    }
}

static void check_ort(program *of, OrtStatus *status) {
    if (status != NULL) {
        fprintf(stderr, "onnxruntime_c: %s\n", of->api->GetErrorMessage(status));
        of->api->ReleaseStatus(status);
        stop(of, 1);
    }
}

static void load(program *of, const char *path) {
    const OrtApi *api = of->api;
    check_ort(of, api->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "boxseg", &of->environment));
    check_ort(of, api->CreateSessionOptions(&of->options));
    check_ort(of, api->CreateSession(of->environment, path, of->options, &of->session));
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
    check(of, json == NULL ? "the model was not exported by boxseg: it has no metadata" : NULL);
    const char *reason = pipeline_open(&of->around, json, strlen(json));
    check_ort(of, api->AllocatorFree(allocator, json));
    check(of, reason);
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
        check(of, is_good ? NULL : "the metadata do not fit an output of the graph");
        check_ort(of, api->GetTensorMutableData(of->outputs[i], &values));
        outputs[i] = values;
    }
    check(of, pipeline_answer(&of->around, outputs, confidence, NULL));
}

int main(int argc, char **argv) {
    if (argc < 5 || argc > 6) {
        fprintf(stderr, "usage: %s MODEL.onnx IMAGE OVERLAY.png ANSWER.json [0.5]\n", argv[0]);
        return 2;
    }
    program of;
    memset(&of, 0, sizeof of);
    of.api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    check(&of, of.api == NULL ? "the ONNX Runtime library is older than its header" : NULL);
    check(&of, picture_read(argv[2], &of.image));
    load(&of, argv[1]);
    bxs_frame frame = picture_frame(&of.image);
    check(&of, pipeline_letterbox(&of.around, &frame));
    run(&of);
    answer(&of, argc == 6 ? atof(argv[5]) : 0.5);
    check(&of, picture_draw(&of.image, of.around.instances, of.around.n, of.around.text));
    check(&of, picture_write_png(argv[3], &of.image));
    check(&of, pipeline_write_json(&of.around, argv[4], argv[2]));
    printf("%zu instances\n", of.around.n);
    stop(&of, 0);
}
