/* client: see client.h.
 *
 * Of a received frame it looks at the boundary and at the time after `sent_ns`. Its own frames are
 * masked with the key 0, which changes no byte.
 */
#define _GNU_SOURCE
#include "client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

enum { READ_BYTES = 1 << 18, REST_BYTES = 1 << 17 };
static const char MARK[] = "sent_ns\"";

struct target target;
struct seen seen;
int live_count, epoll_fd;
char failure[512];

static struct conn conns[MAX_CONNS];
static int conn_count;

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void fail(const char *format, ...)
{
    va_list arguments;
    if (failure[0])
        return;
    va_start(arguments, format);
    vsnprintf(failure, sizeof failure, format, arguments);
    va_end(arguments);
    for (char *c = failure; *c; c++)
        if (*c == '\n' || *c == '\r')
            *c = ' ';
}

static bool has(const char *text, size_t bytes, const char *word)
{
    return memmem(text, bytes, word, strlen(word)) != NULL;
}

/* Frames to the server are few and small: one that does not fit into the socket is a failure. */
static void send_frame(struct conn *c, int opcode, const char *text, size_t bytes)
{
    char frame[4096] = {(char)(0x80 | opcode)};
    size_t head = bytes < 126 ? 6 : 8; /* two bytes, the longer length, a mask of four zeros */
    if (head + bytes > sizeof frame) {
        fail("a frame of %zu bytes to send", bytes);
        return;
    }
    frame[1] = (char)(0x80 | (bytes < 126 ? bytes : 126));
    if (bytes >= 126) {
        frame[2] = (char)(bytes >> 8);
        frame[3] = (char)bytes;
    }
    memcpy(frame + head, text, bytes);
    if (send(c->fd, frame, head + bytes, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)(head + bytes))
        fail("send: %s", strerror(errno));
}

static void go_live(struct conn *c)
{
    c->state = LIVE;
    live_count += !c->publishes;
}

/* Any text that is no delivery: an answer that leads on, a refusal, or something unasked. */
static void on_reply(struct conn *c, const char *text, size_t bytes)
{
    if (has(text, bytes, "\"StatusCode\"")) {
        fail("refused: %.*s", (int)bytes, text);
    } else if (c->state == AUTHENTICATING && has(text, bytes, "\"connection.ok\"")) {
        if (c->publishes) {
            go_live(c);
        } else {
            c->state = JOINING;
            send_frame(c, 1, target.watch, strlen(target.watch));
        }
    } else if (c->state == JOINING && has(text, bytes, "\"call.watching\"")) {
        go_live(c);
    } else {
        seen.other++;
    }
}

static void on_text(struct conn *c, const char *text, size_t bytes, size_t whole, uint64_t now)
{
    static size_t hint; /* where the mark was last time: it rarely moves */
    const size_t mark_bytes = sizeof MARK - 1, need = mark_bytes + 4 + DIGITS;
    const char *mark = text + hint;
    if (c->state != LIVE || c->publishes) {
        on_reply(c, text, bytes);
        return;
    }
    if (hint + need > bytes || memcmp(mark, MARK, mark_bytes)) {
        mark = memmem(text, bytes, MARK, mark_bytes);
        if (!mark || (size_t)(mark - text) + need > bytes) {
            on_reply(c, text, bytes);
            return;
        }
        hint = (size_t)(mark - text);
    }
    mark += mark_bytes;
    uint64_t sent = strtoull(mark + strcspn(mark, "0123456789"), NULL, 10);
    uint64_t bucket = now > sent ? (now - sent) / BUCKET_NS : 0;
    seen.latency[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    seen.deliveries++;
    seen.bytes += whole;
}

static void on_close(const char *text, size_t bytes)
{
    int code = bytes < 2 ? 1005 : (unsigned char)text[0] << 8 | (unsigned char)text[1];
    fail("the server closed: %d %.*s", code, bytes < 2 ? 0 : (int)bytes - 2, text + 2);
}

/* Take one frame off `data`; return its size, or 0 when it is not complete. */
static size_t take_frame(struct conn *c, const char *data, size_t bytes, uint64_t now)
{
    const unsigned char *u = (const unsigned char *)data;
    if (bytes < 2)
        return 0;
    size_t head = u[1] == 126 ? 4 : u[1] == 127 ? 10 : 2, size = head == 2 ? u[1] : 0;
    if (head > bytes)
        return 0;
    for (size_t i = 2; i < head; i++)
        size = size << 8 | u[i];
    if (head + size > REST_BYTES)
        fail("a frame of %zu bytes came", size);
    if (head + size > bytes)
        return 0;
    switch (u[0] & 15) {
    case 1:
        on_text(c, data + head, size, head + size, now);
        break;
    case 8:
        on_close(data + head, size);
        break;
    case 9:
        send_frame(c, 10, data + head, size);
    }
    return head + size;
}

/* Take the answer to the upgrade; return its size, or 0 when it is not complete. */
static size_t take_upgrade(struct conn *c, const char *data, size_t bytes)
{
    const char *end = memmem(data, bytes, "\r\n\r\n", 4);
    if (!end)
        return 0;
    if (bytes < 12 || memcmp(data + 8, " 101", 4))
        fail("no upgrade: %.*s", (int)bytes, data);
    c->state = AUTHENTICATING;
    if (c->auth)
        send_frame(c, 1, c->auth, strlen(c->auth));
    else
        go_live(c);
    return (size_t)(end + 4 - data);
}

/* A plain publisher's answers are only looked through for a refusal, by Redis or by HTTP. */
static size_t take_plain(const char *data, size_t bytes)
{
    if (data[0] == '-' || has(data, bytes, "\n-") || has(data, bytes, "\"StatusCode\""))
        fail("refused: %.*s", (int)bytes, data);
    return bytes;
}

static size_t take(struct conn *c, const char *data, size_t bytes, uint64_t now)
{
    if (c->state == PLAIN)
        return take_plain(data, bytes);
    return c->state == UPGRADING ? take_upgrade(c, data, bytes) : take_frame(c, data, bytes, now);
}

static void keep_rest(struct conn *c, const char *data, size_t bytes)
{
    c->rest_bytes = bytes < REST_BYTES ? bytes : 0;
    if (!c->rest_bytes)
        return;
    c->rest = realloc(c->rest, c->rest_bytes);
    memcpy(c->rest, data, c->rest_bytes);
}

static void on_readable(struct conn *c)
{
    static char buffer[REST_BYTES + READ_BYTES];
    size_t have = c->rest_bytes, used = 0, step;
    if (have)
        memcpy(buffer, c->rest, have);
    ssize_t got = recv(c->fd, buffer + have, READ_BYTES, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        fail("a connection was lost: %s", got ? strerror(errno) : "end of stream");
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
        return;
    }
    have += (size_t)got;
    uint64_t now = now_ns();
    while (used < have && (step = take(c, buffer + used, have - used, now)))
        used += step;
    keep_rest(c, buffer + used, have - used);
}

void turn(uint64_t wait_ns)
{
    struct epoll_event events[256];
    int ready = epoll_wait(epoll_fd, events, 256, (int)((wait_ns + MS - 1) / MS));
    for (int i = 0; i < ready; i++)
        if (events[i].data.ptr)
            on_readable(events[i].data.ptr);
}

static struct conn *connect_to(int port, enum state state)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct conn *c = &conns[conn_count];
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (conn_count == MAX_CONNS || fd < 0) {
        fail("no more sockets after %d", conn_count);
        return NULL;
    }
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) {
        fail("connect: %s", strerror(errno));
        return NULL;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    *c = (struct conn){.fd = fd, .state = state};
    if (target.auth_count)
        c->auth = target.auths[conn_count % target.auth_count];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    conn_count++;
    return c;
}

struct conn *open_plain(int port)
{
    return connect_to(port, PLAIN);
}

struct conn *open_websocket(bool publishes)
{
    char request[2048];
    struct conn *c = connect_to(target.port, UPGRADING);
    if (!c)
        return NULL;
    c->publishes = publishes;
    int bytes = snprintf(request, sizeof request,
                         "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
                         "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                         target.path, target.port);
    if (send(c->fd, request, (size_t)bytes, MSG_NOSIGNAL) != bytes)
        fail("send: %s", strerror(errno));
    return c;
}

uint64_t count_segments(void)
{
    uint64_t total = 0;
    for (int i = 0; i < conn_count; i++) {
        struct tcp_info info = {0};
        socklen_t size = sizeof info;
        if (conns[i].publishes || conns[i].state == PLAIN)
            continue;
        getsockopt(conns[i].fd, IPPROTO_TCP, TCP_INFO, &info, &size);
        total += info.tcpi_data_segs_in;
    }
    return total;
}
