/*
 * Copyright: gpufleet contributors
 * GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * In the place of the C library's klogctl (LD_PRELOAD): answers from the file that GPUFLEET_KERNEL_LOG names, so that a
 * test has a kernel's log of its own. Without the file nobody may read it.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define READ_ALL 3
#define SIZE 10
#define LARGEST 1048576

int klogctl(int type, char *buffer, int length)
{
    const char *path = getenv("GPUFLEET_KERNEL_LOG");
    FILE *file = path ? fopen(path, "r") : NULL;
    int found = LARGEST;
    if (!file) {
        errno = EPERM;
        return -1;
    }
    if (type == READ_ALL)
        found = (int)fread(buffer, 1, (size_t)length, file);
    fclose(file);
    return type == READ_ALL || type == SIZE ? found : -1;
}
