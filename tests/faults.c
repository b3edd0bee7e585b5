/* Loaded before libc: at the step-th operation on a file below one folder it fails, the process dies, or the clock jumps. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, KILL, TORN, FULL, BROKEN, INTERRUPTED, SHORT, NOSYNC, BACK, AHEAD };
enum { OTHER, WRITE, SYNC };
enum { YEAR = 365 * 86400 };

static char below[PATH_MAX];
static long step_of_fault = -1, steps = 0;
static int kind = COUNT;
static char operations[1 << 16]; /* of the steps so far */

void fault_arm(const char *folder, long step, int fault) {
    snprintf(below, sizeof below, "%s", folder);
    step_of_fault = step;
    kind = fault;
    steps = 0;
}

long fault_count(void) { return steps; }

int fault_operation(long step) { return operations[step]; }

static int is_inside(const char *path) { return below[0] && path && !strncmp(path, below, strlen(below)); }

static int is_inside_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!below[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return is_inside(path);
}

static int is_inside_at(int fd, const char *path) {
    return path && (path[0] == '/' || fd == AT_FDCWD) ? is_inside(path) : is_inside_fd(fd);
}

/* 0: go on; 1: fail with errno; 2: write only half */
static int strike(int operation) {
    long now = ++steps;
    if (now < (long)sizeof operations) operations[now] = operation;
    int hits = now == step_of_fault, lasts = now >= step_of_fault && step_of_fault > 0;
    switch (kind) {
    case KILL: if (hits) _exit(9); return 0;
    case TORN: return hits && operation == WRITE ? 2 : (hits ? (_exit(9), 0) : 0);
    case FULL: if (lasts && operation != SYNC) { errno = ENOSPC; return 1; } return 0;
    case BROKEN: if (hits) { errno = EIO; return 1; } return 0;
    case INTERRUPTED: if (hits && operation == WRITE) { errno = EINTR; return 1; } return 0;
    case SHORT: return hits && operation == WRITE ? 2 : 0;
    case NOSYNC: if (lasts && operation == SYNC) { errno = EIO; return 1; } return 0;
    }
    return 0;
}

#define REAL(name, result, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define WRITES(name, parameters, types, half, whole) \
    ssize_t name parameters { \
        REAL(name, ssize_t, types); \
        int how = size && is_inside_fd(fd) ? strike(WRITE) : 0; \
        if (how == 1) return -1; \
        if (how == 2) { \
            ssize_t written = half; \
            if (kind == TORN) _exit(9); \
            return written; \
        } \
        return whole; \
    }
#define COMMA ,
WRITES(write, (int fd, const void *data, size_t size), int COMMA const void * COMMA size_t,
       real(fd, data, (size + 1) / 2), real(fd, data, size))
WRITES(pwrite, (int fd, const void *data, size_t size, off_t at), int COMMA const void * COMMA size_t COMMA off_t,
       real(fd, data, (size + 1) / 2, at), real(fd, data, size, at))
WRITES(pwrite64, (int fd, const void *data, size_t size, off64_t at), int COMMA const void * COMMA size_t COMMA off64_t,
       real(fd, data, (size + 1) / 2, at), real(fd, data, size, at))

#define BY_DESCRIPTOR(name, operation) \
    int name(int fd) { REAL(name, int, int); return is_inside_fd(fd) && strike(operation) ? -1 : real(fd); }
BY_DESCRIPTOR(fsync, SYNC)
BY_DESCRIPTOR(fdatasync, SYNC)

#define TRUNCATES(name, type) \
    int name(int fd, type size) { REAL(name, int, int, type); return is_inside_fd(fd) && strike(OTHER) ? -1 : real(fd, size); }
TRUNCATES(ftruncate, off_t)
TRUNCATES(ftruncate64, off64_t)

#define BY_PATH(name) \
    int name(const char *path) { REAL(name, int, const char *); return is_inside(path) && strike(OTHER) ? -1 : real(path); }
BY_PATH(unlink)
BY_PATH(rmdir)

int unlinkat(int fd, const char *path, int flags) {
    REAL(unlinkat, int, int, const char *, int);
    return is_inside_at(fd, path) && strike(OTHER) ? -1 : real(fd, path, flags);
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir, int, const char *, mode_t);
    return is_inside(path) && strike(OTHER) ? -1 : real(path, mode);
}
int rename(const char *from, const char *to) {
    REAL(rename, int, const char *, const char *);
    return is_inside(to) && strike(OTHER) ? -1 : real(from, to);
}

#define OPENS(name, parameters, types, path_inside, call) \
    int name parameters { \
        REAL(name, int, types); \
        mode_t mode = 0; \
        if (flags & O_CREAT) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
        if ((flags & (O_CREAT | O_TRUNC)) && path_inside && strike(OTHER)) return -1; \
        return call; \
    }
OPENS(open, (const char *path, int flags, ...), const char * COMMA int COMMA ..., is_inside(path), real(path, flags, mode))
OPENS(open64, (const char *path, int flags, ...), const char * COMMA int COMMA ..., is_inside(path), real(path, flags, mode))
OPENS(openat, (int fd, const char *path, int flags, ...), int COMMA const char * COMMA int COMMA ...,
      is_inside_at(fd, path), real(fd, path, flags, mode))
OPENS(openat64, (int fd, const char *path, int flags, ...), int COMMA const char * COMMA int COMMA ...,
      is_inside_at(fd, path), real(fd, path, flags, mode))

static long clock_shift(void) { /* seconds */
    if (step_of_fault <= 0 || steps < step_of_fault) return 0;
    return kind == AHEAD ? YEAR : kind == BACK ? -YEAR : 0;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime, int, clockid_t, struct timespec *);
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += clock_shift();
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    REAL(gettimeofday, int, struct timeval *, void *);
    int result = real(now, zone);
    now->tv_sec += clock_shift();
    return result;
}
time_t time(time_t *now) {
    REAL(time, time_t, time_t *);
    time_t shifted = real(NULL) + clock_shift();
    if (now) *now = shifted;
    return shifted;
}
