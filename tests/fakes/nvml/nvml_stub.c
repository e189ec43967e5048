/*
 * Copyright: gpufleet contributors
 * GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A stand-in for libnvidia-ml.so.1 that answers from a text file instead of a driver, so that the real pynvml can be
 * tested on hosts without a GPU. The README beside this file tells the format of those files.
 *
 * Layouts of structures and values of enumerations are NVML's; nothing of its header is copied.
 */

#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SUCCESS 0
#define UNINITIALIZED 1
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define ARGUMENT_VERSION_MISMATCH 25
#define UNKNOWN 999

#define MAX_GPUS 16
#define MAX_KEYS 64
#define MAX_PROCESSES 32
#define MIB 1048576ULL

#define REMOTE_GPU 0
#define REMOTE_SWITCH 2
#define REMOTE_UNKNOWN 255

struct setting {
    char key[48];
    char value[256];
};

struct table {
    int count;
    struct setting settings[MAX_KEYS];
};

struct process {
    int gpu;
    unsigned pid;
    unsigned long long used_mib;
    char name[256];
};

static struct table host;
static struct table gpus[MAX_GPUS];
static struct process processes[MAX_PROCESSES];
static int process_count;
static int started;

/* ---- the scenario file ---- */

static void put(struct table *table, const char *key, const char *value)
{
    int i;
    for (i = 0; i < table->count; i++)
        if (!strcmp(table->settings[i].key, key))
            break;
    if (i == MAX_KEYS)
        return;
    if (i == table->count)
        table->count++;
    snprintf(table->settings[i].key, sizeof table->settings[i].key, "%s", key);
    snprintf(table->settings[i].value, sizeof table->settings[i].value, "%s", value);
}

static const char *get(const struct table *table, const char *key)
{
    for (int i = 0; i < table->count; i++)
        if (!strcmp(table->settings[i].key, key))
            return table->settings[i].value;
    return NULL;
}

static long long number(const struct table *table, const char *key, long long otherwise)
{
    const char *value = get(table, key);
    return value ? strtoll(value, NULL, 0) : otherwise;
}

static char *trim(char *text)
{
    while (isspace((unsigned char)*text))
        text++;
    char *end = text + strlen(text);
    while (end > text && isspace((unsigned char)end[-1]))
        *--end = '\0';
    return text;
}

/* "process = <gpu>, <pid>, <MiB>, <name, with spaces if one likes>" */
static void put_process(const char *value)
{
    struct process *process = &processes[process_count];
    int name_at = 0;
    if (process_count == MAX_PROCESSES)
        return;
    if (sscanf(value, "%d , %u , %llu , %n", &process->gpu, &process->pid, &process->used_mib, &name_at) == 3) {
        snprintf(process->name, sizeof process->name, "%s", value + name_at);
        process_count++;
    }
}

static FILE *open_scenario(void)
{
    const char *name = getenv("GPUFLEET_NVML_SCENARIO");
    char path[4096];
    Dl_info self;
    if (!name || !*name)
        name = "default";
    if (strchr(name, '/'))
        return fopen(name, "r");
    if (!dladdr((void *)open_scenario, &self) || !self.dli_fname)
        return NULL;
    const char *slash = strrchr(self.dli_fname, '/');
    int folder = slash ? (int)(slash - self.dli_fname) : 0;
    snprintf(path, sizeof path, "%.*s/scenarios/%s.ini", folder, self.dli_fname, name);
    return fopen(path, "r");
}

static int read_scenario(void)
{
    FILE *file = open_scenario();
    char line[512];
    int first = -1, last = -1;
    if (!file) {
        fprintf(stderr, "NVML stub: GPUFLEET_NVML_SCENARIO names no readable scenario and there is no default.ini\n");
        return UNKNOWN;
    }
    memset(&host, 0, sizeof host);
    memset(gpus, 0, sizeof gpus);
    process_count = 0;
    while (fgets(line, sizeof line, file)) {
        char *text = trim(line);
        char *equals = strchr(text, '=');
        if (!*text || *text == '#')
            continue;
        if (!strncmp(text, "[host]", 6)) {
            first = last = -1;
        } else if (sscanf(text, "[gpu %d-%d]", &first, &last) == 2) {
            continue;
        } else if (sscanf(text, "[gpu %d]", &first) == 1) {
            last = first;
        } else if (equals) {
            *equals = '\0';
            char *key = trim(text), *value = trim(equals + 1);
            if (first < 0 && !strcmp(key, "process"))
                put_process(value);
            else if (first < 0)
                put(&host, key, value);
            for (int i = first; first >= 0 && i <= last && i < MAX_GPUS; i++)
                put(&gpus[i], key, value);
        }
    }
    fclose(file);
    return SUCCESS;
}

static unsigned gpu_count(void)
{
    unsigned count = 0;
    for (unsigned i = 0; i < MAX_GPUS; i++)
        if (gpus[i].count)
            count = i + 1;
    return count;
}

/* ---- devices: a handle is the address of the GPU's table ---- */

static int index_of(const struct table *gpu)
{
    return (int)(gpu - gpus);
}

/*
 * A GPU with "error" answers every question with that error, as one that fell off the bus does; one with "unreadable"
 * answers the questions that it names with UNKNOWN.
 */
static int check(const struct table *gpu, const char *question)
{
    const char *unreadable;
    if (!started)
        return UNINITIALIZED;
    if (gpu < gpus || gpu >= gpus + gpu_count())
        return INVALID_ARGUMENT;
    unreadable = get(gpu, "unreadable");
    if (unreadable && strstr(unreadable, question))
        return UNKNOWN;
    return (int)number(gpu, "error", SUCCESS);
}

#define CHECK(gpu)                                                                                                    \
    do {                                                                                                              \
        int failed = check(gpu, __func__);                                                                                      \
        if (failed)                                                                                                   \
            return failed;                                                                                            \
    } while (0)

static int text_answer(const struct table *table, const char *key, char *buffer, unsigned length)
{
    const char *value = get(table, key);
    if (!value)
        return NOT_SUPPORTED;
    if (strlen(value) >= length)
        return INSUFFICIENT_SIZE;
    strcpy(buffer, value);
    return SUCCESS;
}

static int unsigned_answer(const struct table *table, const char *key, unsigned *answer)
{
    if (!get(table, key))
        return NOT_SUPPORTED;
    *answer = (unsigned)number(table, key, 0);
    return SUCCESS;
}

static void bus_id(const struct table *gpu, char *buffer, size_t length)
{
    const char *given = get(gpu, "pci_bus_id");
    if (given)
        snprintf(buffer, length, "%s", given);
    else
        snprintf(buffer, length, "00000000:%02X:00.0", 0x1b + 0x10 * index_of(gpu));
}

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    int failed = read_scenario();
    if (!failed)
        failed = (int)number(&host, "init_error", SUCCESS);
    started = !failed;
    return failed;
}

int nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

int nvmlShutdown(void)
{
    started = 0;
    return SUCCESS;
}

const char *nvmlErrorString(int result)
{
    return result == SUCCESS ? "Success" : "Error of the NVML stub";
}

int nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    return started ? text_answer(&host, "driver_version", version, length) : UNINITIALIZED;
}

int nvmlSystemGetNVMLVersion(char *version, unsigned length)
{
    return started ? text_answer(&host, "nvml_version", version, length) : UNINITIALIZED;
}

int nvmlSystemGetCudaDriverVersion(int *version)
{
    return started ? unsigned_answer(&host, "cuda_driver_version", (unsigned *)version) : UNINITIALIZED;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    return nvmlSystemGetCudaDriverVersion(version);
}

int nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length)
{
    for (int i = 0; i < process_count; i++)
        if (processes[i].pid == pid && processes[i].name[0]) {
            snprintf(name, length, "%s", processes[i].name);
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = gpu_count();
    return started ? SUCCESS : UNINITIALIZED;
}

/* With "handle_error" the driver does not even hand out the device. */
int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct table **gpu)
{
    if (!started)
        return UNINITIALIZED;
    if (index >= gpu_count())
        return INVALID_ARGUMENT;
    *gpu = &gpus[index];
    return (int)number(*gpu, "handle_error", SUCCESS);
}

int nvmlDeviceGetIndex(struct table *gpu, unsigned *index)
{
    CHECK(gpu);
    *index = (unsigned)index_of(gpu);
    return SUCCESS;
}

int nvmlDeviceGetName(struct table *gpu, char *name, unsigned length)
{
    CHECK(gpu);
    return text_answer(gpu, "name", name, length);
}

int nvmlDeviceGetUUID(struct table *gpu, char *uuid, unsigned length)
{
    CHECK(gpu);
    if (get(gpu, "uuid"))
        return text_answer(gpu, "uuid", uuid, length);
    snprintf(uuid, length, "GPU-00000000-0000-4000-8000-%012d", index_of(gpu));
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct table **gpu)
{
    char own[96];
    for (unsigned i = 0; i < gpu_count(); i++)
        if (nvmlDeviceGetUUID(&gpus[i], own, sizeof own) == SUCCESS && !strcmp(own, uuid)) {
            *gpu = &gpus[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

struct pci_info {
    char bus_id_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};

static void fill_pci(struct pci_info *info, const char *bus)
{
    memset(info, 0, sizeof *info);
    snprintf(info->bus_id, sizeof info->bus_id, "%s", bus);
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "%.12s", strlen(bus) > 12 ? bus + 4 : bus);
    sscanf(bus, "%x:%x:%x", &info->domain, &info->bus, &info->device);
}

int nvmlDeviceGetPciInfo_v3(struct table *gpu, struct pci_info *info)
{
    char bus[32];
    CHECK(gpu);
    bus_id(gpu, bus, sizeof bus);
    fill_pci(info, bus);
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(struct table *gpu, int *major, int *minor)
{
    CHECK(gpu);
    const char *value = get(gpu, "compute_capability");
    return value && sscanf(value, "%d.%d", major, minor) == 2 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetArchitecture(struct table *gpu, unsigned *architecture)
{
    CHECK(gpu);
    return unsigned_answer(gpu, "architecture", architecture);
}

/* ---- memory ---- */

struct memory {
    unsigned long long total, free, used;
};

struct memory_v2 {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

int nvmlDeviceGetMemoryInfo_v2(struct table *gpu, struct memory_v2 *memory)
{
    CHECK(gpu);
    if (!get(gpu, "memory_total_mib"))
        return NOT_SUPPORTED;
    if (memory->version != (sizeof *memory | 2u << 24))
        return ARGUMENT_VERSION_MISMATCH;
    memory->total = (unsigned long long)number(gpu, "memory_total_mib", 0) * MIB;
    memory->reserved = (unsigned long long)number(gpu, "memory_reserved_mib", 0) * MIB;
    memory->used = (unsigned long long)number(gpu, "memory_used_mib", 0) * MIB;
    for (int i = 0; i < process_count; i++)
        if (processes[i].gpu == index_of(gpu))
            memory->used += processes[i].used_mib * MIB;
    memory->free = memory->total - memory->reserved - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(struct table *gpu, struct memory *memory)
{
    struct memory_v2 whole = {.version = sizeof whole | 2u << 24};
    int failed = nvmlDeviceGetMemoryInfo_v2(gpu, &whole);
    if (failed)
        return failed;
    memory->total = whole.total;
    memory->free = whole.free;
    memory->used = whole.used + whole.reserved;
    return SUCCESS;
}

struct process_info {
    unsigned pid;
    unsigned long long used;
    unsigned gpu_instance, compute_instance;
};

int nvmlDeviceGetComputeRunningProcesses_v3(struct table *gpu, unsigned *count, struct process_info *list)
{
    unsigned found = 0, room = *count;
    CHECK(gpu);
    for (int i = 0; i < process_count; i++) {
        if (processes[i].gpu != index_of(gpu))
            continue;
        if (list && found < room)
            list[found] = (struct process_info){processes[i].pid, processes[i].used_mib * MIB, ~0u, ~0u};
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

/* ---- modes and health: a key that the scenario leaves out is not supported ---- */

int nvmlDeviceGetMigMode(struct table *gpu, unsigned *current, unsigned *pending)
{
    CHECK(gpu);
    int failed = unsigned_answer(gpu, "mig_mode", current);
    *pending = *current;
    return failed;
}

int nvmlDeviceGetEccMode(struct table *gpu, unsigned *current, unsigned *pending)
{
    CHECK(gpu);
    int failed = unsigned_answer(gpu, "ecc_mode", current);
    *pending = *current;
    return failed;
}

int nvmlDeviceGetTotalEccErrors(struct table *gpu, unsigned kind, unsigned counter, unsigned long long *count)
{
    static const char *const keys[2][2] = {
        {"ecc_corrected_volatile", "ecc_corrected_aggregate"},
        {"ecc_uncorrected_volatile", "ecc_uncorrected_aggregate"},
    };
    CHECK(gpu);
    if (kind > 1 || counter > 1)
        return INVALID_ARGUMENT;
    if (!number(gpu, "ecc_mode", 0))
        return NOT_SUPPORTED;
    *count = (unsigned long long)number(gpu, keys[kind][counter], 0);
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(struct table *gpu, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failure)
{
    CHECK(gpu);
    const char *value = get(gpu, "remapped_rows");
    return value && sscanf(value, "%u , %u , %u , %u", corrected, uncorrected, pending, failure) == 4 ? SUCCESS
                                                                                                       : NOT_SUPPORTED;
}

int nvmlDeviceGetPowerManagementLimit(struct table *gpu, unsigned *milliwatts)
{
    CHECK(gpu);
    int failed = unsigned_answer(gpu, "power_limit_watts", milliwatts);
    *milliwatts *= failed ? 1 : 1000;
    return failed;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(struct table *gpu, unsigned long long *reasons)
{
    CHECK(gpu);
    if (!get(gpu, "clocks_reasons"))
        return NOT_SUPPORTED;
    *reasons = (unsigned long long)number(gpu, "clocks_reasons", 0);
    return SUCCESS;
}

struct field_value {
    unsigned field, scope;
    long long timestamp, latency;
    int kind, error;
    unsigned long long value;
};

/* The key "field_230" is the value of field 230; a field without a key is not supported. */
int nvmlDeviceGetFieldValues(struct table *gpu, int count, struct field_value *values)
{
    char key[32];
    CHECK(gpu);
    for (int i = 0; i < count; i++) {
        snprintf(key, sizeof key, "field_%u", values[i].field);
        values[i].error = get(gpu, key) ? SUCCESS : NOT_SUPPORTED;
        values[i].value = (unsigned long long)number(gpu, key, 0);
    }
    return SUCCESS;
}

int nvmlDeviceGetPersistenceMode(struct table *gpu, unsigned *mode)
{
    CHECK(gpu);
    return unsigned_answer(gpu, "persistence_mode", mode);
}

int nvmlDeviceGetMemoryAffinity(struct table *gpu, unsigned size, unsigned long *nodes, unsigned scope)
{
    (void)scope;
    CHECK(gpu);
    long long node = number(gpu, "numa_node", -1);
    if (node < 0)
        return NOT_SUPPORTED;
    memset(nodes, 0, size * sizeof *nodes);
    nodes[0] = 1UL << node;
    return SUCCESS;
}

/* ---- NVLink and its fabric ---- */

static int listed(const char *list, int wanted)
{
    for (char *end; list && *list; list = *end ? end + 1 : end) {
        long value = strtol(list, &end, 10);
        if (end == list)
            return 0;
        if (value == wanted)
            return 1;
    }
    return 0;
}

static int listed_at(const char *list, unsigned position)
{
    unsigned count = 0;
    int values[MAX_GPUS];
    for (int i = 0; i < MAX_GPUS; i++)
        if (listed(list, i))
            values[count++] = i;
    return count ? values[position % count] : -1;
}

static int switched(const struct table *gpu)
{
    const char *remote = get(gpu, "nvlink_remote");
    return remote && !strcmp(remote, "switch");
}

int nvmlDeviceGetNvLinkState(struct table *gpu, unsigned link, unsigned *active)
{
    CHECK(gpu);
    long long links = number(gpu, "nvlink_links", 0);
    if (!links)
        return NOT_SUPPORTED;
    if (link >= (unsigned)links)
        return INVALID_ARGUMENT;
    *active = link < (unsigned)number(gpu, "nvlink_active", links);
    return SUCCESS;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(struct table *gpu, unsigned link, unsigned *kind)
{
    unsigned active;
    CHECK(gpu);
    int failed = nvmlDeviceGetNvLinkState(gpu, link, &active);
    if (failed)
        return failed;
    *kind = switched(gpu) ? REMOTE_SWITCH : get(gpu, "nvlink_remote") ? REMOTE_GPU : REMOTE_UNKNOWN;
    return active ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(struct table *gpu, unsigned link, struct pci_info *info)
{
    char bus[32] = "00000000:05:00.0";
    CHECK(gpu);
    if (!get(gpu, "nvlink_remote"))
        return NOT_SUPPORTED;
    if (!switched(gpu)) {
        int peer = listed_at(get(gpu, "nvlink_remote"), link);
        if (peer < 0)
            return NOT_SUPPORTED;
        bus_id(&gpus[peer], bus, sizeof bus);
    }
    fill_pci(info, bus);
    return SUCCESS;
}

#define P2P_NVLINK 2
#define P2P_OK 0
#define P2P_NOT_SUPPORTED 5

int nvmlDeviceGetP2PStatus(struct table *one, struct table *other, unsigned what, unsigned *status)
{
    CHECK(one);
    CHECK(other);
    int linked = switched(one) && switched(other) && number(one, "nvlink_active", 1) && number(other, "nvlink_active", 1);
    if (!linked && get(one, "nvlink_remote") && !switched(one))
        linked = listed(get(one, "nvlink_remote"), index_of(other));
    *status = what != P2P_NVLINK || linked ? P2P_OK : P2P_NOT_SUPPORTED;
    return SUCCESS;
}

struct fabric_info {
    unsigned version;
    unsigned char cluster_uuid[16];
    int status;
    unsigned clique_id, state, health_mask;
    unsigned char health_summary; /* from version 3 */
};

int nvmlDeviceGetGpuFabricInfoV(struct table *gpu, struct fabric_info *info)
{
    CHECK(gpu);
    unsigned version = info->version >> 24;
    if (!get(gpu, "fabric_state"))
        return NOT_SUPPORTED;
    if (version < 2 || version > (unsigned)number(&host, "fabric_info_version", 3))
        return ARGUMENT_VERSION_MISMATCH;
    memset(info->cluster_uuid, 0, sizeof info->cluster_uuid);
    info->cluster_uuid[15] = (unsigned char)number(gpu, "fabric_cluster", 0);
    info->status = (int)number(gpu, "fabric_status", SUCCESS);
    info->clique_id = (unsigned)number(gpu, "fabric_clique", 0);
    info->state = (unsigned)number(gpu, "fabric_state", 0);
    info->health_mask = 0;
    if (version >= 3)
        info->health_summary = (unsigned char)number(gpu, "fabric_health", 0);
    return SUCCESS;
}
