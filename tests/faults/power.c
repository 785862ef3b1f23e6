/*
 * A disk that keeps only what was flushed. Preloaded into a server, it passes every write of an embedded
 * database on as usual, and repeats it in the folder FLUSHED once the file is flushed. After a power cut
 * at this moment a real disk would hold at least what stands there.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* What was done to a file and not flushed yet, in order. A length alone cuts the file. */
struct change {
    struct change *next;
    off_t at;
    size_t length;
    char *bytes;
};

static struct file {
    const char *suffix;
    struct change *first, *last;
} files[] = {{".db-wal", 0, 0}, {".db", 0, 0}};

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* The file of the database that a descriptor stands for, and its last name. */
static struct file *known(int fd, char *name) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return NULL;
    path[length] = 0;
    char *last = strrchr(path, '/');
    for (size_t i = 0; last && i < sizeof files / sizeof *files; i++) {
        size_t suffix = strlen(files[i].suffix), all = strlen(last);
        if (all > suffix && !strcmp(last + all - suffix, files[i].suffix)) {
            strcpy(name, last);
            return &files[i];
        }
    }
    return NULL;
}

static void note(int fd, off_t at, const void *bytes, size_t length) {
    char name[PATH_MAX];
    struct file *file = known(fd, name);
    if (!file)
        return;
    struct change *change = calloc(1, sizeof *change);
    change->at = at;
    change->length = length;
    if (bytes) {
        change->bytes = malloc(length);
        memcpy(change->bytes, bytes, length);
    }
    pthread_mutex_lock(&turn);
    if (file->last)
        file->last->next = change;
    else
        file->first = change;
    file->last = change;
    pthread_mutex_unlock(&turn);
}

static void flushed(int fd) {
    char name[PATH_MAX], path[2 * PATH_MAX];
    struct file *file = known(fd, name);
    if (!file)
        return;
    snprintf(path, sizeof path, "%s%s", getenv("FLUSHED"), name);
    pthread_mutex_lock(&turn);
    int kept = open(path, O_WRONLY | O_CREAT, 0600);
    if (kept < 0)
        abort();
    for (struct change *change = file->first; change; change = file->first) {
        ssize_t done = change->bytes ? REAL(pwrite)(kept, change->bytes, change->length, change->at)
                                     : REAL(ftruncate)(kept, change->length);
        if (done < 0)
            abort();
        file->first = change->next;
        free(change->bytes);
        free(change);
    }
    file->last = NULL;
    close(kept);
    pthread_mutex_unlock(&turn);
}

ssize_t write(int fd, const void *bytes, size_t length) {
    off_t at = lseek(fd, 0, SEEK_CUR);
    ssize_t done = REAL(write)(fd, bytes, length);
    if (done > 0 && at >= 0)
        note(fd, at, bytes, done);
    return done;
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) {
    ssize_t done = REAL(pwrite)(fd, bytes, length, at);
    if (done > 0)
        note(fd, at, bytes, done);
    return done;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
    return pwrite(fd, bytes, length, at);
}

int ftruncate(int fd, off_t length) {
    int done = REAL(ftruncate)(fd, length);
    if (!done)
        note(fd, 0, NULL, length);
    return done;
}

int ftruncate64(int fd, off64_t length) {
    return ftruncate(fd, length);
}

int fsync(int fd) {
    flushed(fd);
    return 0;
}

int fdatasync(int fd) {
    flushed(fd);
    return 0;
}
