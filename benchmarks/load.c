/* load: opens many WebSockets, publishes through one door, and counts what arrives.
 *
 * It takes lines on stdin; the ones marked -> are answered by one line, or by "failed WHY":
 *   target PORT PATH     where the next sockets connect, and what they request
 *   auth TEXT            their first frame; several are used in turn, none means no conversation
 *   watch TEXT           their second frame
 *   open N               open N sockets and wait until all of them watch -> "open N"
 *   publishers N PORT    publish over N connections in turn: TCP connections to a port, or with
 *                        port 0 authenticated sockets that watch nothing -> "publishers N"
 *   template HEX         the bytes of one publish; each run of 19 '@' is replaced by the clock
 *   run MS WINDOW EVERY_US
 *                        publish for MS: keep WINDOW events under way, or with WINDOW 0 one event
 *                        each EVERY_US; then wait until all arrived -> "result KEY=VALUE ..."
 * It ends with stdin.
 */
#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { AT_ONCE = 64, MAX_PUBLISHERS = 64, OUT_BYTES = 1 << 16 };
static const uint64_t OPEN_MS = 60000, DRAIN_MS = 5000;
static const char BLANK[] = "@@@@@@@@@@@@@@@@@@@";

static struct publisher {
    struct conn *conn;
    char out[OUT_BYTES]; /* what the socket did not take yet */
    size_t out_bytes;
} publishers[MAX_PUBLISHERS];
static int publisher_count;

static char template[4096];
static size_t template_bytes;

static void open_many(int count)
{
    uint64_t deadline = now_ns() + OPEN_MS * MS;
    int before = live_count, opened = 0;
    while (live_count < before + count && !failure[0]) {
        for (; opened < count && opened - (live_count - before) < AT_ONCE; opened++)
            if (!open_websocket(false))
                return;
        turn(10 * MS);
        if (now_ns() > deadline)
            fail("only %d of %d sockets came to watch", live_count - before, count);
    }
}

static void open_publishers(int count, int port)
{
    uint64_t deadline = now_ns() + DRAIN_MS * MS;
    for (publisher_count = 0; publisher_count < count && !failure[0]; publisher_count++) {
        struct conn *c = port ? open_plain(port) : open_websocket(true);
        publishers[publisher_count] = (struct publisher){.conn = c};
        while (c && c->state < LIVE && !failure[0]) {
            turn(10 * MS);
            if (now_ns() > deadline)
                fail("a publisher was not let in");
        }
    }
}

static void set_template(const char *hex)
{
    unsigned byte;
    for (template_bytes = 0; sscanf(hex, "%2x", &byte) == 1; hex += 2)
        if (template_bytes < sizeof template)
            template[template_bytes++] = (char)byte;
}

static void flush(struct publisher *p)
{
    if (!p->out_bytes)
        return;
    ssize_t sent = send(p->conn->fd, p->out, p->out_bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN)
        fail("publish: %s", strerror(errno));
    if (sent > 0)
        memmove(p->out, p->out + sent, p->out_bytes -= (size_t)sent);
}

/* Queue events that carry this time, one publisher after the other; return how many had room. */
static uint64_t publish(uint64_t events, uint64_t now)
{
    static int next;
    char digits[DIGITS + 8];
    uint64_t queued = 0;
    snprintf(digits, sizeof digits, "%019llu", (unsigned long long)now);
    for (; queued < events; queued++) {
        struct publisher *p = &publishers[next++ % publisher_count];
        char *start = p->out + p->out_bytes, *blank;
        if (p->out_bytes + template_bytes > OUT_BYTES)
            break;
        memcpy(start, template, template_bytes);
        while ((blank = memmem(start, template_bytes, BLANK, DIGITS)))
            memcpy(blank, digits, DIGITS);
        p->out_bytes += template_bytes;
    }
    return queued;
}

static double percentile_us(double share)
{
    uint64_t rank = (uint64_t)(share * (double)seen.deliveries), sum = 0;
    for (int i = 0; i < BUCKETS; i++)
        if ((sum += seen.latency[i]) > rank)
            return (i + 0.5) * BUCKET_NS / 1e3;
    return 0;
}

static double longest_us(void)
{
    int i = BUCKETS;
    while (i && !seen.latency[i - 1])
        i--;
    return i * (BUCKET_NS / 1e3);
}

static void report(uint64_t sent, uint64_t writes, uint64_t wall_ns)
{
    if (failure[0])
        return;
    printf("result events=%llu deliveries=%llu bytes=%llu writes=%llu other=%llu wall_ns=%llu "
           "p50_us=%.0f p99_us=%.0f max_us=%.0f\n",
           (unsigned long long)sent, (unsigned long long)seen.deliveries,
           (unsigned long long)seen.bytes, (unsigned long long)writes,
           (unsigned long long)seen.other, (unsigned long long)wall_ns, percentile_us(0.50),
           percentile_us(0.99), longest_us());
}

static void run(uint64_t ms, uint64_t window, uint64_t every_us)
{
    memset(&seen, 0, sizeof seen);
    uint64_t live = (uint64_t)live_count, sent = 0, writes = count_segments(), start = now_ns();
    uint64_t now = start, next = start, stop = start + ms * MS, deadline = stop + DRAIN_MS * MS;
    if (!publisher_count || !live || !template_bytes)
        fail("no publisher, no watcher or no template");
    while (!failure[0] && (now < stop || seen.deliveries < sent * live)) {
        uint64_t due = window ? seen.deliveries / live + window - sent : now >= next;
        if (due && now < stop) {
            sent += publish(due, now);
            next += every_us * 1000;
        }
        for (int i = 0; i < publisher_count; i++)
            flush(&publishers[i]);
        turn(window ? 0 : now >= stop ? MS : next > now ? next - now : 0);
        if ((now = now_ns()) > deadline)
            fail("stalled: %llu of %llu deliveries came", (unsigned long long)seen.deliveries,
                 (unsigned long long)(sent * live));
    }
    report(sent, count_segments() - writes, now - start);
}

static void obey(const char *line)
{
    unsigned long long a, b, c;
    if (sscanf(line, "target %d %1023s", &target.port, target.path) == 2) {
        target.auth_count = 0;
    } else if (!strncmp(line, "auth ", 5) && target.auth_count < MAX_AUTH) {
        target.auths[target.auth_count++] = strdup(line + 5);
    } else if (!strncmp(line, "watch ", 6)) {
        target.watch = strdup(line + 6);
    } else if (!strncmp(line, "template ", 9)) {
        set_template(line + 9);
    } else if (sscanf(line, "open %llu", &a) == 1) {
        open_many((int)a);
        if (!failure[0])
            printf("open %llu\n", a);
    } else if (sscanf(line, "publishers %llu %llu", &a, &b) == 2 && a <= MAX_PUBLISHERS) {
        open_publishers((int)a, (int)b);
        if (!failure[0])
            printf("publishers %llu\n", a);
    } else if (sscanf(line, "run %llu %llu %llu", &a, &b, &c) == 3) {
        run(a, b, c);
    } else {
        fail("unknown command: %.40s", line);
    }
    if (failure[0])
        printf("failed %s\n", failure);
    failure[0] = 0;
}

/* Obey every complete line; return whether stdin is still open. */
static bool read_commands(void)
{
    static char lines[1 << 16];
    static size_t have;
    ssize_t got = read(STDIN_FILENO, lines + have, sizeof lines - have);
    char *end;
    if (got <= 0)
        return false;
    for (have += (size_t)got; (end = memchr(lines, '\n', have)); have -= (size_t)(end - lines)) {
        *end++ = 0;
        obey(lines);
        memmove(lines, end, have - (size_t)(end - lines));
    }
    return true;
}

int main(void)
{
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct pollfd fds[] = {{.fd = STDIN_FILENO, .events = POLLIN},
                           {.fd = epoll_fd, .events = POLLIN}};
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (poll(fds, 2, -1) > 0) {
        turn(0); /* pings are answered between the commands too */
        if (fds[0].revents && !read_commands())
            break;
    }
    return 0;
}
