/* Preloaded into the service: its wall clock is off by the seconds that the file $CLOCK_JUMP holds (a long), and jumps when that
   changes. The monotonic clock is left alone, as it is when a machine's clock is set. The file $BOOT_JUMP does the same to
   CLOCK_BOOTTIME alone, as it is when a machine has slept. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile long *jump, *boot_jump;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

static volatile long *mapped(const char *path) {
    int file = path ? open(path, O_RDONLY) : -1;
    void *at = file >= 0 ? mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
    return at != MAP_FAILED ? at : NULL;
}

__attribute__((constructor)) static void begin(void) {
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    jump = mapped(getenv("CLOCK_JUMP"));
    boot_jump = mapped(getenv("BOOT_JUMP"));
}

int clock_gettime(clockid_t id, struct timespec *at) {
    if (!real_clock_gettime) begin();
    int failed = real_clock_gettime(id, at);
    if (!failed && jump && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += *jump;
    if (!failed && boot_jump && id == CLOCK_BOOTTIME) at->tv_sec += *boot_jump;
    return failed;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
