/* Reads the JSON that a deployed file carries about itself.
 *
 * One pass checks the grammar; look-ups then walk the text again, so nothing is stored. */
#include <math.h>
#include <string.h>

#include "boxseg.h"

#define MAX_DEPTH 64
#define DIVISOR 32u

/* A part of the text; after the check of the grammar, a value with no space around it. */
typedef struct {
    const char *at, *end;
} span;

/* ---------------------------------------------------------------- grammar */

static void skip_space(span *rest) {
    while (rest->at < rest->end &&
           (*rest->at == ' ' || *rest->at == '\t' || *rest->at == '\n' || *rest->at == '\r')) {
        rest->at++;
    }
}

static int take(span *rest, char expected) {
    if (rest->at == rest->end || *rest->at != expected) {
        return 0;
    }
    rest->at++;
    return 1;
}

static int is_digit(char c) {
    return c >= '0' && c <= '9';
}

static int hex_value(char c) {
    if (is_digit(c)) {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static int skip_string(span *rest) {
    if (!take(rest, '"')) {
        return 0;
    }
    while (rest->at < rest->end) {
        char c = *rest->at++;
        if (c == '"') {
            return 1;
        }
        if ((unsigned char)c < 0x20) {
            return 0;
        }
        if (c != '\\') {
            continue;
        }
        if (rest->at == rest->end) {
            return 0;
        }
        c = *rest->at++;
        if (c == 'u') {
            if (rest->end - rest->at < 4) {
                return 0;
            }
            for (int i = 0; i < 4; i++) {
                if (hex_value(*rest->at++) < 0) {
                    return 0;
                }
            }
        } else if (c == '\0' || strchr("\"\\/bfnrt", c) == NULL) {
            return 0;
        }
    }
    return 0;
}

static int skip_digits(span *rest) {
    const char *start = rest->at;
    while (rest->at < rest->end && is_digit(*rest->at)) {
        rest->at++;
    }
    return rest->at > start;
}

static int skip_number(span *rest) {
    take(rest, '-');
    if (!take(rest, '0') && !skip_digits(rest)) {
        return 0;
    }
    if (take(rest, '.') && !skip_digits(rest)) {
        return 0;
    }
    if (take(rest, 'e') || take(rest, 'E')) {
        if (!take(rest, '+')) {
            take(rest, '-');
        }
        return skip_digits(rest);
    }
    return 1;
}

static int skip_word(span *rest, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(rest->end - rest->at) < length || memcmp(rest->at, word, length) != 0) {
        return 0;
    }
    rest->at += length;
    return 1;
}

static int skip_value(span *rest, int depth);

/* The members of an object or the items of a list, behind the opening bracket. */
static int skip_items(span *rest, int depth, int is_object) {
    char close = is_object ? '}' : ']';
    skip_space(rest);
    if (take(rest, close)) {
        return 1;
    }
    for (;;) {
        skip_space(rest);
        if (is_object) {
            if (!skip_string(rest)) {
                return 0;
            }
            skip_space(rest);
            if (!take(rest, ':')) {
                return 0;
            }
            skip_space(rest);
        }
        if (!skip_value(rest, depth)) {
            return 0;
        }
        skip_space(rest);
        if (take(rest, close)) {
            return 1;
        }
        if (!take(rest, ',')) {
            return 0;
        }
    }
}

static int skip_value(span *rest, int depth) {
    if (rest->at == rest->end || depth == MAX_DEPTH) {
        return 0;
    }
    switch (*rest->at) {
    case '{':
    case '[': {
        int is_object = *rest->at++ == '{';
        return skip_items(rest, depth + 1, is_object);
    }
    case '"':
        return skip_string(rest);
    case 't':
        return skip_word(rest, "true");
    case 'f':
        return skip_word(rest, "false");
    case 'n':
        return skip_word(rest, "null");
    default:
        return skip_number(rest);
    }
}

/* The one value of the text, or nothing. */
static int check_grammar(const char *text, size_t size, span *value) {
    span rest = {text, text + size};
    skip_space(&rest);
    value->at = rest.at;
    int good = skip_value(&rest, 0);
    value->end = rest.at;
    skip_space(&rest);
    return good && rest.at == rest.end;
}

/* ---------------------------------------------------------------- strings */

static uint32_t take_hex(span *rest) {
    uint32_t code = 0;
    for (int i = 0; i < 4; i++) {
        code = code * 16 + (uint32_t)hex_value(*rest->at++);
    }
    return code;
}

/* The code point behind "\u"; two escapes make one beyond U+FFFF. */
static uint32_t take_code_point(span *rest) {
    uint32_t code = take_hex(rest);
    if (code < 0xD800 || code > 0xDFFF) {
        return code;
    }
    span pair = *rest;
    if (code < 0xDC00 && take(&pair, '\\') && take(&pair, 'u')) {
        uint32_t low = take_hex(&pair);
        if (low >= 0xDC00 && low <= 0xDFFF) {
            *rest = pair;
            return 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
    }
    return 0xFFFD;
}

static size_t encode_utf8(uint32_t code, char bytes[4]) {
    if (code < 0x80) {
        bytes[0] = (char)code;
        return 1;
    }
    size_t length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char lead[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = length - 1; i > 0; i--) {
        bytes[i] = (char)(0x80 | (code & 0x3F));
        code >>= 6;
    }
    bytes[0] = (char)(lead[length] | code);
    return length;
}

/* The next character of a string's inside, as UTF-8. */
static size_t take_character(span *inside, char bytes[4]) {
    char c = *inside->at++;
    if (c != '\\') {
        bytes[0] = c;
        return 1;
    }
    c = *inside->at++;
    switch (c) {
    case 'b':
        c = '\b';
        break;
    case 'f':
        c = '\f';
        break;
    case 'n':
        c = '\n';
        break;
    case 'r':
        c = '\r';
        break;
    case 't':
        c = '\t';
        break;
    case 'u':
        return encode_utf8(take_code_point(inside), bytes);
    default:
        break;
    }
    bytes[0] = c;
    return 1;
}

static int is_string(span value) {
    return *value.at == '"';
}

static int string_equals(span value, const char *expected) {
    if (!is_string(value)) {
        return 0;
    }
    span inside = {value.at + 1, value.end - 1};
    size_t length = strlen(expected);
    size_t done = 0;
    while (inside.at < inside.end) {
        char bytes[4];
        size_t n = take_character(&inside, bytes);
        if (n > length - done || memcmp(bytes, expected + done, n) != 0) {
            return 0;
        }
        done += n;
    }
    return done == length;
}

static bxs_status copy_string(span value, char *out, size_t room, size_t *length) {
    span inside = {value.at + 1, value.end - 1};
    size_t done = 0;
    while (inside.at < inside.end) {
        char bytes[4];
        size_t n = take_character(&inside, bytes);
        if (n > room - done) {
            return BXS_ERROR_ROOM;
        }
        memcpy(out + done, bytes, n);
        done += n;
    }
    *length = done;
    return BXS_OK;
}

/* ---------------------------------------------------------------- look-up */

static span take_value(span *rest) {
    span value = {rest->at, rest->at};
    skip_value(rest, 0);
    value.end = rest->at;
    return value;
}

/* Steps to the next item of a list, or over the next key of an object; 0 at its end. Start with the
 * whole value. */
static int next_item(span *rest) {
    rest->at++; /* the opening bracket, or the comma behind the last item */
    skip_space(rest);
    return rest->at < rest->end - 1;
}

static int is_list(span value) {
    return *value.at == '[';
}

/* The last member of that name; 0 if there is none or this is no object. */
static int find(span object, const char *name, span *value) {
    int found = 0;
    if (*object.at != '{') {
        return 0;
    }
    span rest = object;
    while (next_item(&rest)) {
        span key = take_value(&rest);
        skip_space(&rest);
        rest.at++; /* the colon */
        skip_space(&rest);
        span member = take_value(&rest);
        skip_space(&rest);
        if (string_equals(key, name)) {
            *value = member;
            found = 1;
        }
    }
    return found;
}

/* Follows a path such as "head.mask_stride". */
static int look_up(span root, const char *path, span *value) {
    *value = root;
    for (;;) {
        char name[32];
        const char *dot = strchr(path, '.');
        size_t length = dot == NULL ? strlen(path) : (size_t)(dot - path);
        memcpy(name, path, length);
        name[length] = '\0';
        if (!find(*value, name, value)) {
            return 0;
        }
        if (dot == NULL) {
            return 1;
        }
        path = dot + 1;
    }
}

/* ---------------------------------------------------------------- numbers */

static int is_number(span value) {
    return *value.at == '-' || is_digit(*value.at);
}

/* An integer in low..high, written without a point or an exponent. */
static int read_integer(span value, uint64_t low, uint64_t high, uint64_t *out) {
    int is_negative = take(&value, '-');
    uint64_t number = 0;
    for (; value.at < value.end; value.at++) {
        if (!is_digit(*value.at)) {
            return 0;
        }
        uint64_t digit = (uint64_t)(*value.at - '0');
        if (digit > high || number > (high - digit) / 10) {
            return 0;
        }
        number = number * 10 + digit;
    }
    *out = number;
    return number >= low && !(is_negative && number != 0);
}

/* digits * 10 ** -places, to the nearest double, ties to even; places of at most 27, because then
 * 5 ** places and twice any remainder fit 64 bits. */
static double scale_down(uint64_t digits, unsigned places) {
    uint64_t divisor = 1;
    for (unsigned i = 0; i < places; i++) {
        divisor *= 5;
    }
    uint64_t quotient = digits / divisor;
    uint64_t remainder = digits % divisor;
    int shift = 0;
    int is_inexact = 0;
    /* 53 bits, two more to round by, and whether anything is left behind them */
    while (quotient < (uint64_t)1 << 54) {
        remainder *= 2;
        quotient = quotient * 2 + (remainder >= divisor);
        remainder -= remainder >= divisor ? divisor : 0;
        shift++;
    }
    while (quotient >= (uint64_t)1 << 55) {
        is_inexact |= (int)(quotient & 1);
        quotient >>= 1;
        shift--;
    }
    is_inexact |= remainder != 0;
    unsigned rest = (unsigned)(quotient & 3);
    quotient >>= 2;
    if (rest == 3 || (rest == 2 && (is_inexact || (quotient & 1)))) {
        quotient++;
    }
    return ldexp((double)quotient, 2 - shift - (int)places);
}

/* A number that is not negative, in the range that the header states. */
static int read_number(span value, double *out) {
    if (!is_number(value)) {
        return 0;
    }
    int is_negative = take(&value, '-');
    uint64_t digits = 0;
    int significant = 0, exponent = 0, is_fraction = 0;
    for (; value.at < value.end && *value.at != 'e' && *value.at != 'E'; value.at++) {
        if (*value.at == '.') {
            is_fraction = 1;
            continue;
        }
        digits = digits * 10 + (uint64_t)(*value.at - '0');
        significant += digits != 0;
        exponent -= is_fraction;
        if (significant > 19 || exponent < -1000) {
            return 0;
        }
    }
    if (value.at < value.end) {
        value.at++;
        int is_down = take(&value, '-');
        take(&value, '+');
        int power = 0;
        for (; value.at < value.end; value.at++) {
            power = power * 10 + (*value.at - '0');
            if (power > 1000) {
                return 0;
            }
        }
        exponent += is_down ? -power : power;
    }
    if (digits == 0) {
        *out = 0.0;
        return 1;
    }
    for (; exponent > 0; exponent--) {
        if (digits > UINT64_MAX / 10) {
            return 0;
        }
        digits *= 10;
    }
    if (is_negative || exponent < -27) {
        return 0;
    }
    *out = scale_down(digits, (unsigned)-exponent);
    return 1;
}

/* ---------------------------------------------------------------- keys */

/* Reads keys one after the other and remembers the first that was wrong. */
typedef struct {
    span root;
    const char *wrong;
} keys;

static int get(keys *from, const char *path, span *value) {
    if (from->wrong != NULL) {
        return 0;
    }
    if (!look_up(from->root, path, value)) {
        from->wrong = path;
        return 0;
    }
    return 1;
}

static uint32_t get_integer(keys *from, const char *path, uint32_t low, uint32_t high) {
    span value;
    uint64_t number = 0;
    if (get(from, path, &value) && !(is_number(value) && read_integer(value, low, high, &number))) {
        from->wrong = path;
    }
    return (uint32_t)number;
}

static double get_number(keys *from, const char *path, double high, int may_be_high) {
    span value;
    double number = 0.0;
    if (get(from, path, &value) &&
        !(read_number(value, &number) && (number < high || (may_be_high && number == high)))) {
        from->wrong = path;
    }
    return number;
}

/* Which of the names a string is; a list of one states what it must be. */
static uint32_t get_choice(keys *from, const char *path, const char *const *names, uint32_t n) {
    span value;
    if (get(from, path, &value)) {
        for (uint32_t i = 0; i < n; i++) {
            if (string_equals(value, names[i])) {
                return i;
            }
        }
        from->wrong = path;
    }
    return 0;
}

static void expect(keys *from, const char *path, const char *name) {
    get_choice(from, path, &name, 1);
}

static uint32_t get_boolean(keys *from, const char *path) {
    span value;
    if (!get(from, path, &value)) {
        return 0;
    }
    if (*value.at != 't' && *value.at != 'f') {
        from->wrong = path;
    }
    return *value.at == 't';
}

/* What the items of a list are. */
typedef enum { ITEM_STRING, ITEM_INTEGER, ITEM_NUMBER } item_kind;

/* Reads a list of 1..limit items; strings are counted only. Integers are in low..high, numbers
 * above 0 and at most `high`. `out` may be NULL. Returns how many there are. */
static uint32_t get_list(keys *from, const char *path, item_kind kind, uint64_t low, uint64_t high,
                         uint32_t limit, double *out) {
    span list;
    uint32_t n = 0;
    if (!get(from, path, &list)) {
        return 0;
    }
    if (!is_list(list)) {
        from->wrong = path;
        return 0;
    }
    span rest = list;
    while (next_item(&rest)) {
        span item = take_value(&rest);
        skip_space(&rest);
        double number = 0.0;
        uint64_t integer = 0;
        int is_good = 0;
        switch (kind) {
        case ITEM_STRING:
            is_good = is_string(item);
            break;
        case ITEM_INTEGER:
            is_good = is_number(item) && read_integer(item, low, high, &integer);
            number = (double)integer;
            break;
        case ITEM_NUMBER:
            is_good = read_number(item, &number) && number > 0.0 && number <= (double)high;
            break;
        }
        if (!is_good || n == limit) {
            from->wrong = path;
            return 0;
        }
        if (out != NULL) {
            out[n] = number;
        }
        n++;
    }
    if (n == 0) {
        from->wrong = path;
    }
    return n;
}

static void get_size(keys *from, bxs_metadata *metadata) {
    static const char *const rules[] = {"fit", "short_long"};
    metadata->size_rule = (bxs_size_rule)get_choice(from, "imgsz.rule", rules, 2);
    if (metadata->size_rule == BXS_SIZE_SHORT_LONG) {
        metadata->short_side = get_integer(from, "imgsz.short", 1, BXS_MAX_SIDE);
        metadata->long_side = get_integer(from, "imgsz.long", 1, BXS_MAX_SIDE);
        if (from->wrong == NULL && metadata->short_side > metadata->long_side) {
            from->wrong = "imgsz.short";
        }
        return;
    }
    metadata->height = get_integer(from, "imgsz.height", DIVISOR, BXS_MAX_SIDE);
    metadata->width = get_integer(from, "imgsz.width", DIVISOR, BXS_MAX_SIDE);
    if (from->wrong == NULL && metadata->height % DIVISOR != 0) {
        from->wrong = "imgsz.height";
    }
    if (from->wrong == NULL && metadata->width % DIVISOR != 0) {
        from->wrong = "imgsz.width";
    }
}

static void get_head(keys *from, bxs_model *model) {
    double values[BXS_MAX_LEVELS > BXS_MAX_LAYERS ? BXS_MAX_LEVELS : BXS_MAX_LAYERS];
    model->levels = get_list(from, "strides", ITEM_INTEGER, 1, 4096, BXS_MAX_LEVELS, values);
    for (uint32_t i = 0; i < model->levels; i++) {
        model->strides[i] = (uint32_t)values[i];
    }
    uint32_t n = get_list(from, "head.coordinate_scales", ITEM_NUMBER, 0, 1000000000,
                          BXS_MAX_LEVELS, values);
    if (from->wrong == NULL && n != model->levels) {
        from->wrong = "head.coordinate_scales";
    }
    for (uint32_t i = 0; i < n; i++) {
        model->coordinate_scales[i] = (float)values[i];
    }
    model->layers =
        get_list(from, "head.layer_widths", ITEM_INTEGER, 1, BXS_MAX_WIDTH, BXS_MAX_LAYERS, values);
    for (uint32_t i = 0; i < model->layers; i++) {
        model->layer_widths[i] = (uint32_t)values[i];
    }
    if (model->layers > 0 && model->layer_widths[model->layers - 1] != 1) {
        from->wrong = "head.layer_widths";
    }
    model->mask_channels = get_integer(from, "head.mask_channels", 1, BXS_MAX_WIDTH - 2);
    model->relative_coordinates = get_boolean(from, "head.relative_coordinates");
    model->mask_stride = get_integer(from, "head.mask_stride", 1, 4096);
}

static void get_rules(keys *from, bxs_model *model) {
    static const char *const score0_rules[] = {"sqrt_cls_quality", "cls"};
    static const char *const final_rules[] = {"score0", "sqrt_score0_mask"};
    model->score0 = (bxs_score0_rule)get_choice(from, "scores.score0", score0_rules, 2);
    model->final_score = (bxs_final_rule)get_choice(from, "scores.final", final_rules, 2);
    model->candidate_score = get_number(from, "scores.candidate_score", 1.0, 0);
    model->nms_iou = get_number(from, "nms.iou", 1.0, 1);
    model->candidates = get_integer(from, "nms.candidates", 1, BXS_MAX_CANDIDATES);
    model->max_det = get_integer(from, "nms.max_det", 1, BXS_MAX_CANDIDATES);
    if (from->wrong == NULL && model->max_det > model->candidates) {
        from->wrong = "nms.max_det";
    }
}

static void get_all(keys *from, bxs_metadata *metadata) {
    static const char *const forms[] = {"dense", "topk", "graph"};
    static const char *const precisions[] = {"fp32", "fp16", "bf16", "int8"};
    double padding[3];
    get_integer(from, "format_version", 1, 1);
    expect(from, "task", "instance-segmentation");
    metadata->form = (bxs_form)get_choice(from, "form", forms, 3);
    metadata->precision = (bxs_precision)get_choice(from, "precision", precisions, 4);
    expect(from, "input.layout", "NHWC");
    expect(from, "input.dtype", "uint8");
    expect(from, "input.colour", "RGB");
    expect(from, "letterbox.side", "right_bottom");
    metadata->divisor = get_integer(from, "letterbox.divisor", DIVISOR, DIVISOR);
    if (get_list(from, "letterbox.padding", ITEM_INTEGER, 0, 255, 3, padding) == 3) {
        for (int i = 0; i < 3; i++) {
            metadata->padding[i] = (uint8_t)padding[i];
        }
    } else if (from->wrong == NULL) {
        from->wrong = "letterbox.padding";
    }
    uint32_t classes = get_list(from, "classes", ITEM_STRING, 0, 0, BXS_MAX_CLASSES, NULL);
    uint32_t ids =
        get_list(from, "category_ids", ITEM_INTEGER, 0, (uint64_t)1 << 53, BXS_MAX_CLASSES, NULL);
    if (from->wrong == NULL && ids != classes) {
        from->wrong = "category_ids";
    }
    metadata->model.classes = classes;
    get_size(from, metadata);
    get_head(from, &metadata->model);
    get_rules(from, &metadata->model);
}

bxs_status bxs_metadata_read(const char *text, size_t size, bxs_metadata *metadata,
                             const char **wrong) {
    const char *unread;
    if (wrong == NULL) {
        wrong = &unread;
    }
    *wrong = "";
    if (text == NULL || metadata == NULL) {
        return BXS_ERROR_NULL;
    }
    memset(metadata, 0, sizeof *metadata);
    keys from = {{NULL, NULL}, NULL};
    if (!check_grammar(text, size, &from.root)) {
        *wrong = "json";
        return BXS_ERROR_METADATA;
    }
    get_all(&from, metadata);
    if (from.wrong != NULL) {
        *wrong = from.wrong;
        return BXS_ERROR_METADATA;
    }
    return bxs_model_check(&metadata->model);
}

bxs_status bxs_metadata_letterbox(const bxs_metadata *metadata, uint32_t frame_height,
                                  uint32_t frame_width, bxs_letterbox *map) {
    if (metadata == NULL) {
        return BXS_ERROR_NULL;
    }
    if (metadata->size_rule == BXS_SIZE_FIT) {
        return bxs_letterbox_fit(frame_height, frame_width, metadata->height, metadata->width, map);
    }
    return bxs_letterbox_short_long(frame_height, frame_width, metadata->short_side,
                                    metadata->long_side, metadata->divisor, map);
}

/* Item of a list at a position. */
static int find_item(span root, const char *name, uint32_t position, span *item) {
    span rest;
    if (!look_up(root, name, &rest) || !is_list(rest)) {
        return 0;
    }
    for (uint32_t i = 0; next_item(&rest); i++) {
        *item = take_value(&rest);
        skip_space(&rest);
        if (i == position) {
            return 1;
        }
    }
    return 0;
}

bxs_status bxs_metadata_class(const char *text, size_t size, uint32_t class_index, char *name,
                              size_t room, size_t *length, uint64_t *id) {
    if (text == NULL || name == NULL || length == NULL || id == NULL) {
        return BXS_ERROR_NULL;
    }
    span root, item;
    if (!check_grammar(text, size, &root)) {
        return BXS_ERROR_METADATA;
    }
    if (!find_item(root, "category_ids", class_index, &item)) {
        return BXS_ERROR_VALUE;
    }
    if (!is_number(item) || !read_integer(item, 0, (uint64_t)1 << 53, id)) {
        return BXS_ERROR_METADATA;
    }
    if (!find_item(root, "classes", class_index, &item)) {
        return BXS_ERROR_VALUE;
    }
    return is_string(item) ? copy_string(item, name, room, length) : BXS_ERROR_METADATA;
}
