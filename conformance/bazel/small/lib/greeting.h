#ifndef SMALL_LIB_GREETING_H_
#define SMALL_LIB_GREETING_H_

#include <string>

std::string Greeting(const std::string& name);

#endif  // SMALL_LIB_GREETING_H_
