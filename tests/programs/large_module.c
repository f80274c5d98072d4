/*
 * The Python module `large`: make() maps a chunk of 1 MiB, drop() frees it; each returns the line on which it does.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>

static void *volatile made;

static PyObject *make(PyObject *self, PyObject *arguments) {
    (void)self, (void)arguments;
    made = malloc(1 << 20);
    return PyLong_FromLong(__LINE__ - 1);
}

static PyObject *drop(PyObject *self, PyObject *arguments) {
    (void)self, (void)arguments;
    free(made);
    return PyLong_FromLong(__LINE__ - 1);
}

static PyMethodDef methods[] = {{"make", make, METH_NOARGS, NULL}, {"drop", drop, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "large", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_large(void);
PyMODINIT_FUNC PyInit_large(void) { return PyModule_Create(&module); }
