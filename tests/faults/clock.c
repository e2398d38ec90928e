// The wall clock of a process that has this loaded before all else (LD_PRELOAD): as many seconds ahead of the machine's as
// the file says whose name CLOCK_OFFSET_FILE has, looked at again each second. Monotonic time goes on as it does when a
// clock is set, and so do waits.
//
// libfaketime does the same, but it allocates on its first call, and jemalloc asks for the time before its first
// allocation can end. This allocates nothing.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t ahead(void) {
    static atomic_long seconds, looked_at;
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    if (atomic_exchange(&looked_at, now.tv_sec) != now.tv_sec) {
        int before = errno;
        const char *name = getenv("CLOCK_OFFSET_FILE");
        int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
        if (file >= 0) {
            char text[32] = "";
            if (read(file, text, sizeof text - 1) > 0) seconds = atol(text);
            close(file);
        }
        errno = before;
    }
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += ahead();
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}
