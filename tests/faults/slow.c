/*
 * A slow disk. Preloaded into a program, it delays each write to a file whose name ends in ".part", a
 * copy that is being made, by PAUSE_US microseconds.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void pause_for(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 5)
        return;
    path[length] = 0;
    if (!strcmp(path + length - 5, ".part"))
        usleep(atoi(getenv("PAUSE_US")));
}

ssize_t write(int fd, const void *bytes, size_t length) {
    pause_for(fd);
    return REAL(write)(fd, bytes, length);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) {
    pause_for(fd);
    return REAL(pwrite)(fd, bytes, length, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
    pause_for(fd);
    return REAL(pwrite64)(fd, bytes, length, at);
}
