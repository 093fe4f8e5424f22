// A stand-in for NVIDIA's libnvidia-ml.so.1 that answers with what a file says, for machines without a GPU.
//
// FAKE_NVML names the file. Its lines are "key value": "gpus 2"; "init 9", what nvmlInit returns; "0.power 512000", a
// figure of GPU 0 in NVML's unit; "0.nvmlDeviceGetPowerUsage 3", what this call returns for GPU 0; "0.lost 1", which
// makes all calls for GPU 0 fail, as "gone 1" does for all GPUs; "0.xid.1 79", its second XID error. The file is read anew by each call.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, TIMEOUT = 10, LOST = 15 };
enum { MOST_GPUS = 16, XID = 8, MOST_METRICS = 32 };

typedef struct { int index; } Device;
typedef struct { int index; int next; } EventSet;
typedef struct { double time, sums[MOST_METRICS]; } GpmSample;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned version, sensor; int temperature; } Temperature;
typedef struct { Device *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } Event;
typedef struct { unsigned version, is_supported; } GpmSupport;
typedef struct { unsigned id; int result; double value; const char *info[3]; } GpmMetric;
typedef struct { unsigned version, count; GpmSample *older, *newer; GpmMetric metrics[MOST_METRICS]; } GpmQuestion;

static Device devices[MOST_GPUS];
static int users;

static int find(const char *key, char *text, size_t size) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256];
    int found = 0;
    size_t length = strlen(key);
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, key, length) && line[length] == ' ') {
            snprintf(text, size, "%s", line + length + 1);
            text[strcspn(text, "\n")] = 0;
            found = 1;
        }
    if (file) fclose(file);
    return found;
}

static double number(const char *key, double otherwise) {
    char text[128];
    return find(key, text, sizeof text) ? strtod(text, NULL) : otherwise;
}

static double figure_of(int index, const char *name, double otherwise) {
    char key[128];
    snprintf(key, sizeof key, "%d.%s", index, name);
    return number(key, otherwise);
}

static int result_of(const Device *device, const char *call) {
    if (!users) return UNINITIALIZED;
    if (number("gone", 0)) return UNINITIALIZED;
    if (figure_of(device->index, "lost", 0)) return LOST;
    return (int)figure_of(device->index, call, SUCCESS);
}

#define ANSWER_OR_FAIL(device)                              \
    do {                                                    \
        int result = result_of(device, __func__);           \
        if (result != SUCCESS) return result;               \
    } while (0)

#define FIGURE(call, type, name)                            \
    int call(Device *device, type *value) {                 \
        ANSWER_OR_FAIL(device);                             \
        *value = (type)figure_of(device->index, name, 0);   \
        return SUCCESS;                                     \
    }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int result = (int)number("init", number("gone", 0) ? 9 : SUCCESS);
    if (result == SUCCESS) users++;
    return result;
}

int nvmlShutdown(void) {
    if (!users) return UNINITIALIZED;
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(int result) {
    return result == LOST ? "GPU is lost" : "an error";
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    if (!users || number("gone", 0)) return UNINITIALIZED;
    *count = (unsigned)number("gpus", 0);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    if (!users) return UNINITIALIZED;
    if (index >= MOST_GPUS || index >= (unsigned)number("gpus", 0)) return INVALID_ARGUMENT;
    devices[index].index = (int)index;
    *device = &devices[index];
    return result_of(*device, __func__);
}

int nvmlDeviceGetUUID(Device *device, char *text, unsigned size) {
    ANSWER_OR_FAIL(device);
    snprintf(text, size, "GPU-%08x-1111-2222-3333-444455556666", 0xabcdef00u + (unsigned)device->index);
    return SUCCESS;
}

int nvmlDeviceGetName(Device *device, char *text, unsigned size) {
    ANSWER_OR_FAIL(device);
    char key[32];
    snprintf(key, sizeof key, "%d.name", device->index);
    if (!find(key, text, size)) snprintf(text, size, "NVIDIA H200");
    return SUCCESS;
}

FIGURE(nvmlDeviceGetPowerUsage, unsigned, "power")
FIGURE(nvmlDeviceGetEnforcedPowerLimit, unsigned, "power_limit")
FIGURE(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, "energy")
FIGURE(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, "reasons")
FIGURE(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, "reasons")

int nvmlDeviceGetSupportedEventTypes(Device *device, unsigned long long *types) {
    ANSWER_OR_FAIL(device);
    *types = (unsigned long long)figure_of(device->index, "events", XID);
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates) {
    ANSWER_OR_FAIL(device);
    rates->gpu = (unsigned)figure_of(device->index, "utilization", 0);
    rates->memory = (unsigned)figure_of(device->index, "memory_utilization", 0);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory) {
    ANSWER_OR_FAIL(device);
    memory->total = (unsigned long long)figure_of(device->index, "memory_total", 0);
    memory->used = (unsigned long long)figure_of(device->index, "memory_used", 0);
    memory->used += (unsigned long long)figure_of(device->index, "memory_reserved", 0);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *memory) {
    if (memory->version != (sizeof *memory | 2u << 24)) return INVALID_ARGUMENT;
    ANSWER_OR_FAIL(device);
    memory->total = (unsigned long long)figure_of(device->index, "memory_total", 0);
    memory->used = (unsigned long long)figure_of(device->index, "memory_used", 0);
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Device *device, unsigned sensor, unsigned *celsius) {
    (void)sensor;
    ANSWER_OR_FAIL(device);
    *celsius = (unsigned)figure_of(device->index, "temperature", 0);
    return SUCCESS;
}

int nvmlDeviceGetTemperatureV(Device *device, Temperature *told) {
    if (told->version != (sizeof *told | 1u << 24)) return INVALID_ARGUMENT;
    ANSWER_OR_FAIL(device);
    told->temperature = (int)figure_of(device->index, "temperature", 0);
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(Device *device, unsigned kind, unsigned *megahertz) {
    ANSWER_OR_FAIL(device);
    *megahertz = (unsigned)figure_of(device->index, kind == 1 ? "sm_clock" : "memory_clock", 0);
    return SUCCESS;
}

int nvmlDeviceGetMaxClockInfo(Device *device, unsigned kind, unsigned *megahertz) {
    ANSWER_OR_FAIL(device);
    *megahertz = (unsigned)figure_of(device->index, kind == 1 ? "sm_clock_max" : "memory_clock_max", 0);
    return SUCCESS;
}

int nvmlEventSetCreate(EventSet **events) {
    *events = calloc(1, sizeof **events);
    return *events ? SUCCESS : 20;
}

int nvmlEventSetFree(EventSet *events) {
    free(events);
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(Device *device, unsigned long long types, EventSet *events) {
    ANSWER_OR_FAIL(device);
    if (types != XID) return INVALID_ARGUMENT;
    events->index = device->index;
    return SUCCESS;
}

int nvmlEventSetWait_v2(EventSet *events, Event *event, unsigned timeout_ms) {
    if (timeout_ms) return INVALID_ARGUMENT; // whoever waits here measures nothing meanwhile
    char name[32];
    snprintf(name, sizeof name, "xid.%d", events->next);
    int code = (int)figure_of(events->index, name, -1);
    if (code < 0) return figure_of(events->index, "lost", 0) ? LOST : TIMEOUT;
    events->next++;
    memset(event, 0, sizeof *event);
    event->device = &devices[events->index];
    event->type = XID;
    event->data = (unsigned long long)code;
    return SUCCESS;
}

int nvmlGpmQueryDeviceSupport(Device *device, GpmSupport *support) {
    ANSWER_OR_FAIL(device);
    if (support->version != 1) return INVALID_ARGUMENT;
    support->is_supported = (unsigned)figure_of(device->index, "has_gpm", 0);
    return SUCCESS;
}

int nvmlGpmSampleAlloc(GpmSample **sample) {
    *sample = calloc(1, sizeof **sample);
    return *sample ? SUCCESS : 20;
}

int nvmlGpmSampleFree(GpmSample *sample) {
    free(sample);
    return SUCCESS;
}

// A sample holds sums of busy seconds, "0.gpm.2 1.5" for metric 2, at a time, "0.gpm.time 3".
int nvmlGpmSampleGet(Device *device, GpmSample *sample) {
    ANSWER_OR_FAIL(device);
    sample->time = figure_of(device->index, "gpm.time", 0);
    for (int id = 0; id < MOST_METRICS; id++) {
        char name[32];
        snprintf(name, sizeof name, "gpm.%d", id);
        sample->sums[id] = figure_of(device->index, name, NAN);
    }
    return SUCCESS;
}

int nvmlGpmMetricsGet(GpmQuestion *question) {
    if (question->version != 1 || question->count > MOST_METRICS) return INVALID_ARGUMENT;
    for (unsigned i = 0; i < question->count; i++) {
        GpmMetric *metric = &question->metrics[i];
        if (metric->id >= MOST_METRICS) return INVALID_ARGUMENT;
        double busy = question->newer->sums[metric->id] - question->older->sums[metric->id];
        metric->result = isnan(busy) ? NOT_SUPPORTED : SUCCESS;
        metric->value = 100 * busy / (question->newer->time - question->older->time);
    }
    return SUCCESS;
}
