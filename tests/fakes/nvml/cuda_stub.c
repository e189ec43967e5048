/*
 * Copyright: gpufleet contributors
 * GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A stand-in for libcuda.so.1 that knows as much of CUDA's driver API as is asked of a container: whether it starts, and
 * which GPUs there are. It answers from a text file; the README beside this file tells its format.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SUCCESS 0
#define INVALID_VALUE 1
#define NOT_INITIALIZED 3
#define NO_DEVICE 100
#define INVALID_DEVICE 101
#define SYSTEM_NOT_READY 802
#define SYSTEM_DRIVER_MISMATCH 803
#define COMPAT_NOT_SUPPORTED_ON_DEVICE 804

#define MAX_GPUS 16

static unsigned char uuids[MAX_GPUS][16];
static int count;
static int started;

static int parse_uuid(const char *text, unsigned char *uuid)
{
    int digits = 0;

    for (; *text != '\0' && *text != '\n'; text++) {
        const char *found = strchr("0123456789abcdef", *text);
        if (*text == '-')
            continue;
        if (found == NULL || digits == 32)
            return 0;
        int value = (int)(found - "0123456789abcdef");
        uuid[digits / 2] = (unsigned char)(digits % 2 ? uuid[digits / 2] | value : value << 4);
        digits++;
    }
    return digits == 32;
}

int cuInit(unsigned flags)
{
    const char *path = getenv("GPUFLEET_CUDA_STUB");
    FILE *file = fopen(path != NULL ? path : "/etc/gpufleet-fake-gpus", "r");
    char line[128];
    int code = SUCCESS;

    (void)flags;
    count = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "init ", 5) == 0)
            code = atoi(line + 5);
        else if (strncmp(line, "GPU-", 4) == 0 && count < MAX_GPUS && parse_uuid(line + 4, uuids[count]))
            count++;
    }
    if (file != NULL)
        fclose(file);
    if (code == SUCCESS && count == 0)
        code = NO_DEVICE;
    started = code == SUCCESS;
    return code;
}

int cuGetErrorString(int code, const char **text)
{
    switch (code) {
    case SUCCESS: *text = "no error"; break;
    case NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
    case SYSTEM_NOT_READY: *text = "system not yet initialized"; break;
    case SYSTEM_DRIVER_MISMATCH: *text = "system has unsupported display driver / cuda driver combination"; break;
    case COMPAT_NOT_SUPPORTED_ON_DEVICE: *text = "forward compatibility was attempted on non supported HW"; break;
    default: *text = NULL; return INVALID_VALUE;
    }
    return SUCCESS;
}

int cuDeviceGetCount(int *number)
{
    if (!started)
        return NOT_INITIALIZED;
    *number = count;
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal)
{
    if (!started)
        return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= count)
        return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

int cuDeviceGetUuid(unsigned char *uuid, int device)
{
    if (!started)
        return NOT_INITIALIZED;
    if (device < 0 || device >= count)
        return INVALID_DEVICE;
    memcpy(uuid, uuids[device], 16);
    return SUCCESS;
}
