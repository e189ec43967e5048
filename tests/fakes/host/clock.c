/*
 * Copyright: gpufleet contributors
 * GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Preloaded into a program, lets it read the wall clock GPUFLEET_CLOCK_OFFSET seconds off: nobody sets a machine's real
 * clock for a test.
 */

#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t which, struct timespec *now)
{
    const char *offset = getenv("GPUFLEET_CLOCK_OFFSET");
    int result = (int)syscall(SYS_clock_gettime, which, now);
    if (!result && which == CLOCK_REALTIME && offset)
        now->tv_sec += strtol(offset, NULL, 10);
    return result;
}
