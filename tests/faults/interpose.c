/* Lets the wall clock, the disk and name resolution fail in one process, by LD_PRELOAD. interpose.py sets what fails.
 * FAULT_AWS_PORT is the port of 127.0.0.1 at which what stands in for AWS answers to every name of AWS.
 *
 * FAULT_CONTROL names a file that is mapped as `struct control`. The monotonic clock stays as it is. Reads and writes
 * fail for regular files alone, so that sockets and pipes work on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct control {
    int64_t clock_seconds;
    int32_t write_errno, read_errno, sync_errno, names_fail;
};
static struct control nothing;
static volatile struct control *control = &nothing;

__attribute__((constructor)) static void attach(void)
{
    const char *path = getenv("FAULT_CONTROL");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED)
        control = mapped;
    close(fd);
}

#define NEXT(name) \
    static __typeof__(name) *next; \
    if (!next) \
        next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

int clock_gettime(clockid_t clock, struct timespec *now)
{
    NEXT(clock_gettime);
    int result = next(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += control->clock_seconds;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    NEXT(gettimeofday);
    int result = next(now, zone);
    now->tv_sec += control->clock_seconds;
    return result;
}

time_t time(time_t *stored)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (stored)
        *stored = now.tv_sec;
    return now.tv_sec;
}

/* Abseil waits for a time of the wall clock, which the kernel compares with its own. */
long syscall(long number, ...)
{
    NEXT(syscall);
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long);
    long d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    struct timespec until;
    if (number == SYS_futex && (b & FUTEX_CLOCK_REALTIME) && d) {
        until = *(struct timespec *)d;
        until.tv_sec -= control->clock_seconds;
        d = (long)&until;
    }
    return next(number, a, b, c, d, e, f);
}

static int fails(int fd, int32_t code)
{
    struct stat found;
    if (!code || fstat(fd, &found) || !S_ISREG(found.st_mode))
        return 0;
    errno = code;
    return 1;
}

ssize_t write(int fd, const void *data, size_t size)
{
    NEXT(write);
    return fails(fd, control->write_errno) ? -1 : next(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    NEXT(pwrite);
    return fails(fd, control->write_errno) ? -1 : next(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    NEXT(pwrite64);
    return fails(fd, control->write_errno) ? -1 : next(fd, data, size, at);
}
ssize_t pread(int fd, void *data, size_t size, off_t at)
{
    NEXT(pread);
    return fails(fd, control->read_errno) ? -1 : next(fd, data, size, at);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t at)
{
    NEXT(pread64);
    return fails(fd, control->read_errno) ? -1 : next(fd, data, size, at);
}
int fsync(int fd)
{
    NEXT(fsync);
    return fails(fd, control->sync_errno) ? -1 : next(fd);
}
int fdatasync(int fd)
{
    NEXT(fdatasync);
    return fails(fd, control->sync_errno) ? -1 : next(fd);
}

/* A disk that cannot be written lets no file be opened for writing: SQLite opens its journal for each commit. */
static int opened(const char *path, int flags)
{
    if (control->write_errno != EROFS || (flags & O_ACCMODE) == O_RDONLY || !strncmp(path, "/dev/", 5))
        return 1;
    errno = EROFS;
    return 0;
}
int open(const char *path, int flags, ...)
{
    NEXT(open);
    va_list list;
    va_start(list, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
    va_end(list);
    return opened(path, flags) ? next(path, flags, mode) : -1;
}
int open64(const char *path, int flags, ...)
{
    NEXT(open64);
    va_list list;
    va_start(list, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
    va_end(list);
    return opened(path, flags) ? next(path, flags, mode) : -1;
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    NEXT(getaddrinfo);
    if (control->names_fail && node && !strcmp(node, "localhost"))
        return EAI_AGAIN;
    const char *port = getenv("FAULT_AWS_PORT"), *domain = ".amazonaws.com";
    if (port && node && strlen(node) > strlen(domain) && !strcmp(node + strlen(node) - strlen(domain), domain))
        return next("127.0.0.1", port, hints, found);
    return next(node, service, hints, found);
}
